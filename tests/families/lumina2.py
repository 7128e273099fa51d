"""Lumina-Image 2.0."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.flux import decode, encode

__all__ = ["CASE", "gemma_tokenizer", "write_tiny_lumina2"]


def gemma_tokenizer() -> Any:
    """Gemma's tokenizer of single letters; it begins each text with a mark."""
    from tokenizers.processors import TemplateProcessing
    from transformers import GemmaTokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "\u2581", *string.ascii_letters, *string.digits, *string.punctuation]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=8192)
    mark = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])])
    tokenizer.backend_tokenizer.post_processor = mark
    return tokenizer


def write_tiny_lumina2(folder: Path) -> Path:
    """Write a Lumina 2 pipeline of random weights (seed 0), one token for each 16 x 16 pixels; the same bits each time.

    Its pipeline takes every autoencoder for one of 8 x 8 pixels a latent.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline

    tokenizer = gemma_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = _networks(len(tokenizer))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    Lumina2Pipeline(**networks, tokenizer=tokenizer, scheduler=scheduler).save_pretrained(folder)
    return folder


def _networks(vocabulary: int) -> dict[str, Any]:
    from diffusers import AutoencoderKL, Lumina2Transformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    text: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 8}
    return {
        "transformer": Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=48,
            num_layers=2,
            num_refiner_layers=2,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=8,
            axes_dim_rope=(4, 4, 4),
            cap_feat_dim=24,
        ),
        "text_encoder": Gemma2Model(Gemma2Config(vocab_size=vocabulary, max_position_embeddings=1024, **text)),
        "vae": AutoencoderKL(
            block_out_channels=(4,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=4,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
    }


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    text, mask, _, _ = pipeline.encode_prompt(list(captions), do_classifier_free_guidance=False)
    output: Tensor = pipeline.transformer(
        hidden_states=latents,
        timestep=1 - sigma_B * 1000 / pipeline.scheduler.config.num_train_timesteps,
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        return_dict=False,
    )[0]
    return -output


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    painted: Tensor = pipeline(
        list(captions),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=1.0,
        latents=latents,
        output_type="latent",
    ).images
    return painted


CASE = FamilyCase(
    pipeline="Lumina2Pipeline",
    write=write_tiny_lumina2,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"lumina2": "lumina2"},
    tolerance=1e-5,  # the pipeline fills texts up to 256 tokens, and masks these
)
