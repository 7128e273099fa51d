"""Stable Diffusion 3.5 as medium has it: its first blocks attend twice, and all attention has norms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.parts import clip_text_encoder, clip_tokenizer, t5_text_encoder, t5_tokenizer, tiny_autoencoder

__all__ = ["CASE", "decode", "encode", "paint", "velocity", "write_tiny_sd3"]


def write_tiny_sd3(folder: Path, *, is_first: bool = False, has_t5: bool = True) -> Path:
    """Write a Stable Diffusion 3 pipeline of random weights (seed 0) at 32 pixels; the same bits each time.

    Args:
        folder: the base's.
        is_first: whether it is as 3 medium: no block attends twice, and attention has no norms.
        has_t5: whether its third text encoder is there.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    first, second = clip_tokenizer(folder / "tokenizer"), clip_tokenizer(folder / "tokenizer_2", padding="!")
    tokenizers = {"tokenizer": first, "tokenizer_2": second, "tokenizer_3": t5_tokenizer(512) if has_t5 else None}
    kind: dict[str, Any] = {} if is_first else {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "transformer": SD3Transformer2DModel(
                sample_size=16,
                in_channels=4,
                out_channels=4,
                num_layers=4,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=96,
                caption_projection_dim=32,
                pooled_projection_dim=24 + 40,
                pos_embed_max_size=24,
                **kind,
            ),
            "vae": tiny_autoencoder(
                latent_channels=4,
                scaling_factor=1.5305,
                shift_factor=0.0609,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            "text_encoder": clip_text_encoder(len(first), 32, 24),
            "text_encoder_2": clip_text_encoder(len(second), 48, 40, hidden_act="gelu"),
            "text_encoder_3": t5_text_encoder(len(t5_tokenizer(512)), 96),
        }
    if not has_t5:
        networks["text_encoder_3"] = None
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = StableDiffusion3Pipeline(**networks, **tokenizers, scheduler=scheduler)
    pipeline.save_pretrained(folder)
    return folder


def encode(pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    config, posterior = pipeline.vae.config, pipeline.vae.encode(pixels).latent_dist
    return (posterior.mean - config.shift_factor) * config.scaling_factor, posterior.std * config.scaling_factor


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    config = pipeline.vae.config
    pixels: Tensor = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    return pixels


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    each = [pipeline.encode_prompt([one], None, None, do_classifier_free_guidance=False) for one in captions]
    text, _, pooled, _ = (torch.cat(rows) if rows[0] is not None else None for rows in zip(*each, strict=True))
    answer: Tensor = pipeline.transformer(
        hidden_states=latents,
        timestep=1000 * sigma_B,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return answer


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
    pipeline="StableDiffusion3Pipeline",
    write=write_tiny_sd3,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"sd3-medium": "sd3-medium", "sd35-medium": "sd35-medium", "sd35-large": "sd35-large"},
    key_tables=("sd3-medium", "sd35-medium"),
)
