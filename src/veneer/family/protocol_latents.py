"""What a family offers for pictures and clips: their sizes, and latents made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from veneer.family.conditioning import Conditioning

__all__ = ["FamilyLatents", "LatentDistribution"]


@dataclass(frozen=True)
class LatentDistribution:
    """The autoencoder's posterior in the latents that the denoiser sees, i.e. scaled: mean and deviation, (B, ...)."""

    mean: Tensor
    std: Tensor


class FamilyLatents(Protocol):
    """The latents of a base, and the pictures and clips that it takes."""

    resolution: int
    """Side of the square the base was trained on, in pixels."""
    multiple: int
    """Sides of pictures must be multiples of this many pixels."""
    frame_stride: int | None
    """A clip has one frame more than a multiple of this many; None: the base takes pictures only."""
    frame_rate: float | None
    """Frames a second of the clips that it was trained on; None: the base takes pictures only."""
    reference_counts: range
    """How many references, pictures that a text is to be applied to, it takes with a text: none, unless it edits."""
    usual_references: int
    """How many there are where nobody says it: one of a base that is made to edit; it may also paint from nothing."""

    @property
    def longest_side(self) -> int | None:
        """Pixels that a side of a picture may have, where its places are in a grid of so many; None: any."""

    def encode_references(self, references: Sequence[Tensor]) -> Conditioning:
        """Turn the references of one sample, (3, H, W) in [-1, 1], into a row of ``Conditioning.of_references``.

        Nothing is random about it, and there is no gradient.
        """

    def encode_image(self, pixels_BCHW: Tensor) -> LatentDistribution:
        """Turn pixels in [-1, 1], (B, 3, H, W), into the posterior over latents; no gradient."""

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents into pixels in [-1, 1], (B, 3, H, W); no gradient."""
