"""What OFT and BOFT have in common: blocks that are rotations, and a factor for each row of the weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from veneer.adapter.stored import StoredAdapter, bad_factors, check_parts, number_in

__all__ = ["RotationBlocks", "cayley", "check_rescale", "rescaled", "rotation_parts"]


@dataclass(frozen=True, eq=False)
class RotationBlocks(StoredAdapter):
    """One layer's rotations of outputs.

    ``oft_blocks`` is (..., n, size, size), ``rescale``, which may be missing, (out, 1) or (out, 1, 1, 1). The number
    alpha is no strength: alpha times outputs is the longest that all Q together may be, 0 is no limit.
    """

    NUMBERS: ClassVar[tuple[str, ...]] = ("alpha",)

    @property
    def blocks(self) -> Tensor:
        """The blocks before they are made rotations."""
        return self.tensors["oft_blocks"]

    @property
    def told_shape(self) -> tuple[int, ...]:
        """(out,)."""
        return (self.blocks.shape[-3] * self.blocks.shape[-2],)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it can change a weight of a shape."""
        return len(shape) > 1 and shape[0] == self.told_shape[0]

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """The size of a block, and the limit."""
        return {"block_size": self.blocks.shape[-1], "constraint": self.numbers["alpha"]}

    @property
    def is_untrained(self) -> bool:
        """True where all rotations are I."""
        rescale = self.tensors.get("rescale")
        return not self.blocks.any() and (rescale is None or bool((rescale == 1).all()))

    def rotations(self, weight: Tensor) -> Tensor:
        """Return the rotations for a weight, in its dtype."""
        return cayley(self.blocks, self.numbers["alpha"] * len(weight)).to(weight.dtype)


def cayley(blocks: Tensor, limit: float) -> Tensor:
    """Return the rotations (I + Q)(I - Q)^-1 of blocks (..., size, size), Q = blocks - blocks^T.

    Args:
        blocks: in float32 at least, or they are computed with in float32.
        limit: the longest that all Q together may be, those longer are shortened to it; 0 is none.
    """
    wide = blocks.to(torch.promote_types(blocks.dtype, torch.float32))
    skew = wide - wide.transpose(-1, -2)
    length = torch.linalg.vector_norm(skew) + 1e-8
    if 0 < limit < float(length):
        skew = skew * (limit / length)
    identity = torch.eye(blocks.shape[-1], dtype=wide.dtype, device=wide.device)
    rotations: Tensor = torch.linalg.solve(identity - skew, identity + skew, left=False)
    return rotations


def rescaled(weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a weight with each row multiplied by its entry of ``rescale``, where there is one."""
    rescale = tensors.get("rescale")
    return weight if rescale is None else weight * rescale.reshape(-1, *(1 for _ in weight.shape[1:]))


def check_rescale(tensors: Mapping[str, Tensor], outputs: int) -> None:
    """Refuse a ``rescale`` that is not of a layer's outputs."""
    rescale = tensors.get("rescale")
    if rescale is not None and (rescale.numel() != outputs or rescale.ndim == 0 or rescale.shape[0] != outputs):
        raise bad_factors(f"a rescale of shape {tuple(rescale.shape)} is not one of {outputs} outputs")


def rotation_parts(parts: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the tensors and numbers of a file's parts of OFT or BOFT.

    Raises:
        UserError: a part is missing, or the limit is not one number.
    """
    check_parts(parts, ["oft_blocks"])
    tensors = {part: parts[part] for part in ("oft_blocks", "rescale") if part in parts}
    if math.prod(tensors["oft_blocks"].shape[:-2]) == 0:
        raise bad_factors("has no blocks")
    return tensors, {"alpha": number_in("alpha", parts["alpha"]) if "alpha" in parts else 0.0}
