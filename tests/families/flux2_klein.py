"""FLUX.2 [klein]: Qwen3, and no guidance input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.families import Edits, FamilyCase, flux2
from tests.families.chat_tokenizers import qwen_tokenizer

__all__ = ["CASE", "write_tiny_klein"]


def write_tiny_klein(folder: Path, *, is_distilled: bool = False) -> Path:
    """Write a [klein] of random weights (seed 0), one token for each 4 x 4 pixels; the same bits each time."""
    from diffusers import Flux2KleinPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = qwen_tokenizer()
        text_encoder = _tiny_qwen(len(tokenizer))
        return flux2.write(folder, Flux2KleinPipeline, tokenizer, text_encoder, is_distilled=is_distilled)


def _tiny_qwen(vocabulary: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=flux2.TEXT_WIDTH,
            intermediate_size=16,
            num_hidden_layers=28,  # one more than the last that is read
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
    ).eval()


CASE = FamilyCase(
    pipeline="Flux2KleinPipeline",
    write=write_tiny_klein,
    encode=flux2.encode,
    decode=flux2.decode,
    velocity=flux2.velocity,
    paint=flux2.paint,
    edits=Edits((1, 2), flux2.edit_velocity, side=32),
    published={"flux2-klein-4b": "flux2-klein-4b", "flux2-klein-9b": "flux2-klein-9b"},
    key_tables=("flux2-klein-4b", "flux2-klein-9b"),
)
