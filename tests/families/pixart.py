"""PixArt-Sigma: noise is predicted, and a variance beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.families import FamilyCase
from tests.families.parts import t5_text_encoder, t5_tokenizer, tiny_autoencoder

__all__ = ["CASE", "velocity", "write_tiny_pixart"]


def write_tiny_pixart(folder: Path, *, is_told_sizes: bool = False) -> Path:
    """Write a PixArt-Sigma pipeline of random weights (seed 0) at 32 pixels; the same bits each time.

    Args:
        folder: the base's.
        is_told_sizes: whether its transformer takes sizes, as PixArt-alpha's does.
    """
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    tokenizer = t5_tokenizer(300)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "transformer": PixArtTransformer2DModel(
                sample_size=16,
                num_layers=2,
                attention_head_dim=12,
                num_attention_heads=2,
                in_channels=4,
                out_channels=8,
                cross_attention_dim=24,
                caption_channels=32,
                interpolation_scale=2,
                use_additional_conditions=is_told_sizes,
            ),
            "vae": tiny_autoencoder(latent_channels=4, scaling_factor=0.13025),
            "text_encoder": t5_text_encoder(len(tokenizer), 32),
        }
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    PixArtSigmaPipeline(**networks, tokenizer=tokenizer, scheduler=scheduler).save_pretrained(folder)
    return folder


def encode(pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    scale, posterior = pipeline.vae.config.scaling_factor, pipeline.vae.encode(pixels).latent_dist
    return posterior.mean * scale, posterior.std * scale


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    pixels: Tensor = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return pixels


def velocity(pipeline: Any, latents: Tensor, step_B: Tensor, captions: Sequence[str]) -> Tensor:
    text, mask, _, _ = pipeline.encode_prompt(list(captions), do_classifier_free_guidance=False)
    answer: Tensor = pipeline.transformer(
        latents,
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        timestep=step_B,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0].chunk(2, dim=1)[0]
    return answer


CASE = FamilyCase(
    pipeline="PixArtSigmaPipeline",
    write=write_tiny_pixart,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=None,
    published={"pixart-sigma": "pixart-sigma"},
    is_flow=False,
    loads_adapters=False,
    tolerance=1e-5,
)
