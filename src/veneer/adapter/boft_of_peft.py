"""BOFT of one stage as peft has it: a layer's inputs are turned in blocks, and its outputs multiplied.

``W' = s W0 R^T``, each block of R the Cayley transform (I - Q)(I + Q)^-1. Of several stages, which peft makes only with
an extension for CUDA, the permutations between them are not proven, so they are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.protocol import Method
from veneer.adapter.stored import StoredAdapter, bad_factors, check_parts
from veneer.errors import UserError

__all__ = ["BOFT_OF_PEFT", "BoftOfInputs"]


@dataclass(frozen=True, eq=False)
class BoftOfInputs(StoredAdapter):
    """One layer's BOFT of its inputs: ``boft_R`` (1, n, size, size) and ``boft_s`` (out, 1)."""

    NUMBERS: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Refuse blocks that are not square, and factors that are no vector."""
        blocks, factors = self.tensors["boft_R"], self.tensors["boft_s"]
        if blocks.ndim != 4 or blocks.shape[0] != 1 or blocks.shape[2] != blocks.shape[3]:
            raise bad_factors(f"blocks of shape {tuple(blocks.shape)} are not those of a BOFT of peft")
        if factors.numel() != max(factors.shape, default=0):
            raise bad_factors(f"factors of shape {tuple(factors.shape)} are not of a layer's outputs")

    @property
    def method(self) -> Method:
        """The method: BOFT, as peft has it."""
        return BOFT_OF_PEFT

    @property
    def told_shape(self) -> tuple[int, ...]:
        """(out, in kh kw)."""
        blocks = self.tensors["boft_R"]
        return (self.tensors["boft_s"].numel(), blocks.shape[1] * blocks.shape[2])

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it can change a weight of a shape."""
        return len(shape) > 1 and (shape[0], math.prod(shape[1:])) == self.told_shape

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """The size of a block."""
        return {"block_size": self.tensors["boft_R"].shape[-1]}

    @property
    def is_untrained(self) -> bool:
        """True where R is I and all factors are 1."""
        return not self.tensors["boft_R"].any() and bool((self.tensors["boft_s"] == 1).all())

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W = s W0 R^T - W0."""
        blocks = self.tensors["boft_R"][0]
        wide = blocks.to(torch.promote_types(blocks.dtype, torch.float32))
        skew = (wide - wide.transpose(1, 2)) / 2
        identity = torch.eye(blocks.shape[-1], dtype=wide.dtype, device=wide.device)
        rotations = torch.linalg.solve(identity + skew, identity - skew, left=False).to(weight.dtype)
        grouped = weight.reshape(len(weight), *blocks.shape[:2])
        turned = torch.einsum("onc,nkc->onk", grouped, rotations).reshape(len(weight), -1)
        return (turned * self.tensors["boft_s"].reshape(-1, 1)).reshape(weight.shape) - weight


def _from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> BoftOfInputs:
    """Return the blocks that a file has.

    Raises:
        UserError: a part is missing, or there are several stages.
    """
    check_parts(parts, ["boft_R", "boft_s"])
    if parts["boft_R"].ndim == 4 and parts["boft_R"].shape[0] > 1:
        what = f"is a BOFT of peft with {parts['boft_R'].shape[0]} stages, of which only one is read"
        raise UserError(what, code="weights.unsupported_method", remedy="merge it into the base with peft")
    return BoftOfInputs({part: parts[part] for part in ("boft_R", "boft_s")}, {})


BOFT_OF_PEFT = Method(
    names=PART_NAMES["boft_of_peft"],
    is_additive=False,
    is_mergeable=True,
    spec=None,
    from_state=BoftOfInputs.from_state,
    from_file=_from_file,
)
