"""Paint prompts through diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from veneer.engine.adapter_bank import AdapterBank, Row
from veneer.errors import UserError
from veneer.family.protocol import Family

__all__ = ["generate", "generate_each"]


def generate(
    family: Family,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 4.0,
    batch: int = 8,
) -> list[Image.Image]:
    """Paint one picture for each pair of prompt and seed, by the networks as they stand.

    Each picture has a generator of its own, so it is the same in any batch (up to rounding in the last bit of a
    colour, since matrix products of other sizes round otherwise) and the same as diffusers gives for
    ``torch.Generator().manual_seed(seed)``.

    Args:
        family: the base, with or without an adapter in it.
        prompts: the texts to paint.
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


def generate_each(
    family: Family,
    bank: AdapterBank,
    rows: Sequence[Row],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 4.0,
    batch: int = 8,
) -> list[Image.Image]:
    """Paint as :func:`generate` does, each picture with adapters of its own: ``rows[i]`` is of ``prompts[i]``.

    Args:
        family: the base that the bank is of.
        bank: the adapters.
        rows: one entry a picture, as :meth:`AdapterBank.rows` takes them.
        prompts: the texts to paint.
        seeds: one a prompt.
        steps: denoising steps.
        guidance: scale of classifier-free guidance; 1 is none.
        batch: pictures painted at once.

    Raises:
        UserError: there is not one entry a picture, or an adapter is not in the bank.
    """
    if len(rows) != len(prompts):
        what = f"{len(rows)} rows are given for {len(prompts)} prompts"
        raise UserError(what, code="sample.rows_and_prompts", remedy="give one a prompt, or None")
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        with bank.rows(rows[part], guidance=guidance > 1):
            pictures += generate(family, prompts[part], seeds[part], steps=steps, guidance=guidance, batch=batch)
    return pictures
