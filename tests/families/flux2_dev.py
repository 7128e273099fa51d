"""FLUX.2 [dev]: Mistral Small 3.1 after a system message, and a guidance input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.families import Edits, FamilyCase, flux2
from tests.families.chat_tokenizers import mistral_tokenizer

__all__ = ["CASE", "tiny_mistral", "write_tiny_dev"]


def write_tiny_dev(folder: Path) -> Path:
    """Write a [dev] of random weights (seed 0), one token for each 4 x 4 pixels; the same bits each time.

    Its index names a tokenizer where the published one names a processor of texts and pictures.
    """
    from diffusers import Flux2Pipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = mistral_tokenizer()
        return flux2.write(folder, Flux2Pipeline, tokenizer, tiny_mistral(len(tokenizer)))


def tiny_mistral(vocabulary: int) -> Any:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    text = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=flux2.TEXT_WIDTH,
        intermediate_size=16,
        num_hidden_layers=31,  # one more than the last that is read
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=1024,
        sliding_window=None,
    )
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=8)
    return Mistral3ForConditionalGeneration(config).eval()


CASE = FamilyCase(
    pipeline="Flux2Pipeline",
    write=write_tiny_dev,
    encode=flux2.encode,
    decode=flux2.decode,
    velocity=flux2.velocity,
    paint=flux2.paint,
    edits=Edits((1, 2), flux2.edit_velocity, side=32),
    published={"flux2-dev": "flux2-dev"},
    key_tables=("flux2-dev",),
)
