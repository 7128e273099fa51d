"""What the generated tests are told of each family: one module a family, which has its ``CASE``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["CAPTIONS", "Edits", "FamilyCase", "family_cases"]

CAPTIONS = ("a cat", "the dog that sees a cat, and no end of other things besides")
"""Of different lengths, so that a batch of both must tell them apart."""


@dataclass(frozen=True)
class Edits:
    """A family that edits, as diffusers' own parts have it.

    Attributes:
        counts: numbers of references to try.
        velocity: as ``FamilyCase.velocity``, with each caption's references as a further argument: pixels (3, H, W) in
            [-1, 1] of the size of what is painted.
        side: of the squares that the tiny base paints in runs on pairs, in latents; pipelines refuse tiny references.
    """

    counts: tuple[int, ...]
    velocity: Callable[[Any, Tensor, Tensor, Sequence[str], Sequence[Sequence[Tensor]]], Tensor]
    side: int = 8


@dataclass(frozen=True)
class FamilyCase:
    """One family, as diffusers' own parts have it; nothing here calls the family's code.

    Latents are the grid that Veneer has outside a family, (B, C, h, w); ``pipeline`` is diffusers' over the tiny base.

    Attributes:
        pipeline: the class of diffusers' pipeline, a key of ``FAMILIES``.
        write: writes the tiny base into a folder, with random weights of seed 0; the same bits each time.
        encode: (pipeline, pixels) -> mean and deviation of the latents as the denoiser sees them.
        decode: (pipeline, latents) -> pixels, not clamped.
        velocity: (pipeline, noisy latents, sigma_B float32, captions) -> eps - x as the pipeline computes it for these
            captions without guidance, in the latents' shape; of a base of discrete diffusion (pipeline, noisy latents,
            steps, captions) -> the predicted noise.
        paint: (pipeline, latents, captions, steps) -> latents after so many of the pipeline's own steps without
            guidance; None: its scheduler is not Euler's, and the family has a test of its own.
        published: the names of its published sizes, each with the counts' file in tests/data/configs.
        open: (folder, its class) -> the pipeline, where diffusers does not open it by itself.
        key_tables: tables in tests/data/keys of whole models' layers.
        is_flow: whether it is flow matching; else discrete diffusion that predicts noise.
        loads_adapters: whether diffusers' pipeline reads adapter files.
        unused: layers that no output of the denoiser depends on, which get no gradient.
        edits: what it does with references; None: it takes none.
        frames: counts of frames of clips to try; none: it takes pictures only.
        unguided: what the pipeline is told so that it guides by the text alone, where it guides otherwise as well.
        tolerance: most that a prediction may differ from the pipeline's, where it is not the same operations.
    """

    pipeline: str
    write: Callable[[Path], Path]
    encode: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    decode: Callable[[Any, Tensor], Tensor]
    velocity: Callable[[Any, Tensor, Tensor, Sequence[str]], Tensor]
    paint: Callable[[Any, Tensor, Sequence[str], int], Tensor] | None
    published: dict[str, str] = field(default_factory=dict)
    open: Callable[[Path, Any], Any] | None = None
    key_tables: tuple[str, ...] = ()
    is_flow: bool = True
    loads_adapters: bool = True
    unused: tuple[str, ...] = ()
    edits: Edits | None = None
    frames: tuple[int, ...] = ()
    unguided: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0


def family_cases() -> dict[str, FamilyCase]:
    """Return the case of each family by its module's name."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module.CASE for name, module in modules.items() if hasattr(module, "CASE")}
