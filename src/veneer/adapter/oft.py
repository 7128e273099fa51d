"""OFT (Qiu et al. 2023; LyCORIS, diag-OFT): ``W' = R^T W0``, R block diagonal and orthogonal, each row perhaps scaled.

Each block of R is the Cayley transform (I + Q)(I - Q)^-1 of a skew Q. kohya's own OFT has the same blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from veneer.adapter.boft import BoftBlocks
from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.protocol import Method
from veneer.adapter.rotations import cayley, check_rescale, rescaled, rotation_parts
from veneer.adapter.stored import StoredAdapter, bad_factors

__all__ = ["OFT", "OftBlocks"]


@dataclass(frozen=True, eq=False)
class OftBlocks(StoredAdapter):
    """One layer's OFT: ``oft_blocks`` (n, size, size) and perhaps ``rescale`` (out, 1) or (out, 1, 1, 1).

    The number alpha is no strength: alpha times outputs is the longest that all Q together may be, 0 is no limit.
    """

    NUMBERS: ClassVar[tuple[str, ...]] = ("alpha",)

    def check(self) -> None:
        """Refuse blocks that are not square."""
        blocks = self.tensors["oft_blocks"]
        if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2]:
            raise bad_factors(f"blocks of shape {tuple(blocks.shape)} are not those of an OFT")
        check_rescale(self.tensors, self.told_shape[0])

    @property
    def method(self) -> Method:
        """The method: OFT."""
        return OFT

    @property
    def told_shape(self) -> tuple[int, ...]:
        """(out,)."""
        blocks = self.tensors["oft_blocks"]
        return (blocks.shape[0] * blocks.shape[1],)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it can change a weight of a shape."""
        return len(shape) > 1 and shape[0] == self.told_shape[0]

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """The size of a block, and the limit."""
        return {"block_size": self.tensors["oft_blocks"].shape[-1], "constraint": self.numbers["alpha"]}

    @property
    def is_untrained(self) -> bool:
        """True where R is I."""
        rescale = self.tensors.get("rescale")
        return not self.tensors["oft_blocks"].any() and (rescale is None or bool((rescale == 1).all()))

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W = m R^T W0 - W0 (LyCORIS, ``diag_oft._diff_weight``)."""
        blocks = self.tensors["oft_blocks"]
        rotations = cayley(blocks, self.numbers["alpha"] * len(weight)).to(weight.dtype)
        grouped = weight.reshape(*blocks.shape[:2], -1)
        rotated = torch.einsum("knm,kni->kmi", rotations, grouped).reshape(weight.shape)
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
