"""FLUX.1 with a guidance input, as [dev] has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.bases import write_tiny_flux
from tests.families import FamilyCase

__all__ = ["CASE", "decode", "encode", "paint", "velocity"]


def encode(pipeline: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    config, posterior = pipeline.vae.config, pipeline.vae.encode(pixels).latent_dist
    return (posterior.mean - config.shift_factor) * config.scaling_factor, posterior.std * config.scaling_factor


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    config = pipeline.vae.config
    pixels: Tensor = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    return pixels


def packed(pipeline: Any, latents: Tensor) -> Tensor:
    tokens: Tensor = pipeline._pack_latents(latents, *latents.shape)
    return tokens


def unpacked(pipeline: Any, tokens: Tensor, like: Tensor) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor for side in like.shape[-2:])
    latents: Tensor = pipeline._unpack_latents(tokens, height, width, pipeline.vae_scale_factor)
    return latents


def velocity(pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str]) -> Tensor:
    text, pooled, text_ids = pipeline.encode_prompt(list(captions), None, device="cpu")
    rows, columns = (side // 2 for side in latents.shape[-2:])
    tokens = pipeline.transformer(
        hidden_states=packed(pipeline, latents),
        timestep=sigma_B,
        guidance=torch.full([len(latents)], 1.0) if pipeline.transformer.config.guidance_embeds else None,
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=text_ids,
        img_ids=pipeline._prepare_latent_image_ids(len(latents), rows, columns, "cpu", latents.dtype),
        return_dict=False,
    )[0]
    return unpacked(pipeline, tokens, latents)


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    tokens = pipeline(
        list(captions),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=1.0,
        latents=packed(pipeline, latents),
        output_type="latent",
    ).images
    return unpacked(pipeline, tokens, latents)


CASE = FamilyCase(
    pipeline="FluxPipeline",
    write=write_tiny_flux,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"flux-dev": "flux1-dev", "flux-schnell": "flux1-schnell"},
    key_tables=("flux1",),
)
