"""Prompts to pictures through diffusers' own pipeline, and sheets of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from veneer.family.base import Family

__all__ = ["generate"]


def generate(
    family: Family,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 4.0,
    batch: int = 8,
) -> list[Image.Image]:
    """One picture for each pair of prompt and seed, by the networks as they stand.

    Each picture has a generator of its own, so it is the same in any batch (up to rounding in the last bit of a
    colour, since matrix products of other sizes round otherwise) and the same as diffusers gives for
    ``torch.Generator().manual_seed(seed)``.

    Args:
        family: the base, with or without an adapter in it.
        prompts: what to paint.
        seeds: one a prompt.
        steps: denoising steps.
        guidance: scale of classifier-free guidance (Ho and Salimans 2022); 1 is none.
        batch: pictures painted at once.
    """
    pairs = list(zip(prompts, seeds, strict=True))
    pipeline: Any = family.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = []
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        result = pipeline(
            prompt=[prompt for prompt, _ in part],
            generator=[torch.Generator().manual_seed(seed) for _, seed in part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=family.resolution,
            width=family.resolution,
        )
        pictures += result.images
    return pictures
