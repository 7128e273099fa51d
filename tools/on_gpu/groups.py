"""The groups of cases that are measured, the most telling first; needs the standard library alone."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GROUPS", "PEFT", "Group"]

PEFT = "peft, latents and texts kept"
"""The way that ratios are over."""


@dataclass(frozen=True)
class Group:
    """Ways to train one base at one size.

    Attributes:
        name: of the group.
        title: for a person.
        base: a published architecture, or a denoiser of ``sizes``.
        pixels: side of the pictures.
        batch: pictures a step.
        is_compiled: whether repeated blocks are compiled by ``torch.compile``.
        gib: look for the largest batch in so much memory.
        limit: seconds that the group may take.
    """

    name: str
    title: str
    base: str
    pixels: int
    batch: int = 1
    is_compiled: bool = False
    gib: float | None = None
    limit: float = 60.0


_ALL = (
    Group("sd15-512-1", "Stable Diffusion 1.5's size, 512 pixels, batch 1", "sd15", 512),
    Group("sd15-512-4", "Stable Diffusion 1.5's size, 512 pixels, batch 4", "sd15", 512, batch=4),
    Group("sdxl-1024-1", "SDXL's size, 1024 pixels, batch 1", "sdxl", 1024),
    Group("flux-1024-1", "FLUX.1's denoiser alone, 1024 pixels, batch 1", "flux", 1024),
    Group("z-image-1024-1", "Z-Image's denoiser alone, 1024 pixels, batch 1", "z-image", 1024),
    Group("sd15-512-largest", "Stable Diffusion 1.5's denoiser, 512 pixels, in 24 GiB", "sd15", 512, gib=24.0),
    Group("sd15-512-1-compiled", "the same at batch 1, compiled", "sd15", 512, is_compiled=True, limit=90.0),
    Group("sdxl-1024-1-compiled", "SDXL's size, 1024 pixels, batch 1, compiled", "sdxl", 1024, is_compiled=True),
)
GROUPS = {group.name: group for group in _ALL}
