"""FLUX.1 Kontext: FLUX.1's networks under another pipeline, with and without a reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.bases import write_tiny_flux
from tests.families import Edits, FamilyCase
from tests.families.flux import decode, encode, packed, unpacked, velocity

__all__ = ["CASE", "edit_velocity", "paint"]


def write(folder: Path) -> Path:
    write_tiny_flux(folder)
    index = folder / "model_index.json"
    values = json.loads(index.read_text("utf-8"))
    index.write_text(json.dumps({**values, "_class_name": "FluxKontextPipeline"}), "utf-8")
    return folder


def edit_velocity(
    pipeline: Any, latents: Tensor, sigma_B: Tensor, captions: Sequence[str], references: Sequence[Sequence[Tensor]]
) -> Tensor:
    text, pooled, text_ids = pipeline.encode_prompt(list(captions), None, device="cpu")
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    # one by one, as a run encodes them
    encoded = torch.cat([pipeline._encode_vae_image(one[None], torch.Generator()) for (one,) in references])
    _, shown, places, reference_places = pipeline.prepare_latents(
        encoded,
        len(latents),
        latents.shape[1],
        height,
        width,
        latents.dtype,
        latents.device,
        torch.Generator(),
    )
    tokens = packed(pipeline, latents)
    answer = pipeline.transformer(
        hidden_states=torch.cat([tokens, shown], dim=1),
        timestep=sigma_B,
        guidance=torch.full([len(latents)], 1.0),
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=text_ids,
        img_ids=torch.cat([places, reference_places]),
        return_dict=False,
    )[0]
    return unpacked(pipeline, answer[:, : tokens.shape[1]], latents)


def paint(pipeline: Any, latents: Tensor, captions: Sequence[str], steps: int) -> Tensor:
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[-2:])
    tokens = pipeline(
        prompt=list(captions),
        height=height,
        width=width,
        max_area=height * width,
        num_inference_steps=steps,
        guidance_scale=1.0,
        latents=packed(pipeline, latents),
        output_type="latent",
    ).images
    return unpacked(pipeline, tokens, latents)


CASE = FamilyCase(
    pipeline="FluxKontextPipeline",
    write=write,
    encode=encode,
    decode=decode,
    velocity=velocity,
    paint=paint,
    published={"flux-kontext": "flux1-dev"},
    key_tables=("flux1",),
    edits=Edits((1,), edit_velocity),
)
