"""OFT (Qiu et al. 2023; LyCORIS, diag-OFT): ``W' = R^T W0``, R block diagonal and orthogonal, each row perhaps scaled.

Each block of R is the Cayley transform (I + Q)(I - Q)^-1 of a skew Q. kohya's own OFT has the same blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from veneer.adapter.boft import BoftBlocks
from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.protocol import Method
from veneer.adapter.rotations import RotationBlocks, check_rescale, rescaled, rotation_parts
from veneer.adapter.stored import bad_factors

__all__ = ["OFT", "OftBlocks"]


@dataclass(frozen=True, eq=False)
class OftBlocks(RotationBlocks):
    """One layer's OFT: blocks (n, size, size)."""

    def check(self) -> None:
        """Refuse blocks that are not square."""
        if self.blocks.ndim != 3 or self.blocks.shape[1] != self.blocks.shape[2]:
            raise bad_factors(f"blocks of shape {tuple(self.blocks.shape)} are not those of an OFT")
        check_rescale(self.tensors, self.told_shape[0])

    @property
    def method(self) -> Method:
        """The method: OFT."""
        return OFT

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W = m R^T W0 - W0 (LyCORIS, ``diag_oft._diff_weight``)."""
        grouped = weight.reshape(*self.blocks.shape[:2], -1)
        rotated = torch.einsum("knm,kni->kmi", self.rotations(weight), grouped).reshape(weight.shape)
        return rescaled(rotated, self.tensors) - weight


def _from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> OftBlocks | BoftBlocks:
    """Return the blocks that a file has; those of BOFT have the same name, and one axis more."""
    tensors, numbers = rotation_parts(parts)
    return BoftBlocks(tensors, numbers) if tensors["oft_blocks"].ndim == 4 else OftBlocks(tensors, numbers)


OFT = Method(
    names=PART_NAMES["oft"],
    is_additive=False,
    is_mergeable=True,
    spec=None,
    from_state=OftBlocks.from_state,
    from_file=_from_file,
)
