"""BOFT (Liu et al. 2024; LyCORIS): ``W' = R_m ... R_1 W0``, each R block diagonal between two permutations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.protocol import Method
from veneer.adapter.rotations import RotationBlocks, check_rescale, rescaled, rotation_parts
from veneer.adapter.stored import bad_factors

__all__ = ["BOFT", "BoftBlocks"]


@dataclass(frozen=True, eq=False)
class BoftBlocks(RotationBlocks):
    """One layer's BOFT: blocks (m, n, size, size)."""

    def check(self) -> None:
        """Refuse blocks that are not those of a butterfly."""
        blocks = self.blocks
        if blocks.ndim != 4 or blocks.shape[2] != blocks.shape[3] or blocks.shape[2] % 2:
            raise bad_factors(f"blocks of shape {tuple(blocks.shape)} are not those of a BOFT")
        if self.told_shape[0] % (blocks.shape[2] << min(blocks.shape[0] - 1, 63)):
            raise bad_factors(f"{blocks.shape[0]} stages of {blocks.shape[1]} blocks make no butterfly")
        check_rescale(self.tensors, self.told_shape[0])

    @property
    def method(self) -> Method:
        """The method: BOFT."""
        return BOFT

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """The size of a block, the limit, and the number of stages."""
        return {**super().hyperparameters, "stages": self.blocks.shape[0]}

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W = m R_m ... R_1 W0 - W0 (LyCORIS, ``boft._diff_weight``)."""
        turned = weight.flatten(1)
        for stage, rotations in enumerate(self.rotations(weight)):
            turned = _turned(turned, rotations, 2**stage * self.blocks.shape[-1] // 2)
        return rescaled(turned.reshape(weight.shape), self.tensors) - weight


def _turned(weight: Tensor, rotations: Tensor, reach: int) -> Tensor:
    """Return a weight (out, in) whose rows are turned among each other.

    Args:
        weight: the rows.
        rotations: (n, size, size), each of the rows that stand beside each other once they are permuted.
        reach: how far apart two rows are that the permutation puts side by side.
    """
    permuted = weight.reshape(-1, 2, reach, weight.shape[1]).transpose(1, 2)
    turned = torch.einsum("nij,njk->nik", rotations, permuted.reshape(*rotations.shape[:2], -1))
    return turned.reshape(-1, reach, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> BoftBlocks:
    return BoftBlocks(*rotation_parts(parts))


BOFT = Method(
    names=PART_NAMES["boft"],
    is_additive=False,
    is_mergeable=True,
    spec=None,
    from_state=BoftBlocks.from_state,
    from_file=_from_file,
)
