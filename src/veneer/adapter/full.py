"""Full differences: what was trained as it is, of a layer's weight and bias (``diff``, ``diff_b``) or a norm's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.protocol import Method
from veneer.adapter.stored import StoredAdapter, bad_factors, check_parts, same_but_kernel

__all__ = ["FULL", "NORM", "FullDifference", "NormDifference"]


@dataclass(frozen=True, eq=False)
class FullDifference(StoredAdapter):
    """One layer's difference: ``diff``, of the shape of the weight, ``diff_b`` (out,), or one of them."""

    WEIGHT: ClassVar[str] = "diff"
    BIAS: ClassVar[str] = "diff_b"

    def check(self) -> None:
        """Refuse differences that are of no layer."""
        weight, bias = self.tensors.get(self.WEIGHT), self.tensors.get(self.BIAS)
        if (weight is None and bias is None) or (bias is not None and bias.ndim != 1):
            raise bad_factors("has no difference of a weight, and none of a bias that has one axis")
        if weight is not None and (weight.ndim not in (1, 2, 4) or (bias is not None and len(weight) != len(bias))):
            shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in self.tensors.items())
            raise bad_factors(f"{shapes} are not of a layer")

    @property
    def method(self) -> Method:
        """The method: a full difference."""
        return FULL

    @property
    def told_shape(self) -> tuple[int, ...]:
        """The weight's, or (out,) where only the bias is changed."""
        return tuple(self.tensors.get(self.WEIGHT, self.tensors.get(self.BIAS, torch.empty(0))).shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it can change a weight of a shape."""
        if self.WEIGHT not in self.tensors:
            return shape[0] == self.told_shape[0]
        return (len(self.told_shape) == 1) == (len(shape) == 1) and same_but_kernel(self.told_shape, shape)

    @property
    def bias_size(self) -> int | None:
        """How many entries the bias has that it changes; None: it changes none."""
        bias = self.tensors.get(self.BIAS)
        return None if bias is None else len(bias)

    @property
    def is_untrained(self) -> bool:
        """True where the difference is zero."""
        return not any(tensor.any() for tensor in self.tensors.values())

    @classmethod
    def from_file(cls, parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> FullDifference:
        """Return the differences that a file has.

        Raises:
            UserError: they are of no layer.
        """
        return cls({part: parts[part] for part in (cls.WEIGHT, cls.BIAS) if part in parts}, {})

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return the difference of the weight; of the base's weight only the shape matters, and only without one."""
        own = self.tensors.get(self.WEIGHT)
        return torch.zeros_like(weight) if own is None else own.reshape(self.shape)

    def delta_bias(self, bias: Tensor) -> Tensor | None:
        """Return the difference of the bias."""
        return self.tensors.get(self.BIAS)

    def squared_norm(self, weight: Tensor | None = None) -> float:
        """Return |delta W|^2."""
        own = self.tensors.get(self.WEIGHT)
        return 0.0 if own is None else float(own.double().square().sum())


@dataclass(frozen=True, eq=False)
class NormDifference(FullDifference):
    """One norm's difference: ``w_norm`` (size,), and perhaps ``b_norm`` (size,)."""

    WEIGHT: ClassVar[str] = "w_norm"
    BIAS: ClassVar[str] = "b_norm"

    @property
    def method(self) -> Method:
        """The method: a trained norm."""
        return NORM

    @classmethod
    def from_file(cls, parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> FullDifference:
        """Return the differences that a file has.

        Raises:
            UserError: there is none of the weight, or they are not of a norm.
        """
        check_parts(parts, [cls.WEIGHT])
        if parts[cls.WEIGHT].ndim != 1:
            raise bad_factors(f"{cls.WEIGHT} of shape {tuple(parts[cls.WEIGHT].shape)} is not of a norm")
        return super().from_file(parts, settings)


FULL = Method(
    names=PART_NAMES["full"],
    is_additive=True,
    is_mergeable=True,
    spec=None,
    from_state=FullDifference.from_state,
    from_file=FullDifference.from_file,
    row_parts={"diff": None, "diff_b": None},
)
NORM = Method(
    names=PART_NAMES["norm"],
    is_additive=True,
    is_mergeable=True,
    spec=None,
    from_state=NormDifference.from_state,
    from_file=NormDifference.from_file,
    row_parts={"w_norm": None, "b_norm": None},
)
