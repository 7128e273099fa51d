"""One tensor of a base with adapters in it, and what rounding it to its dtype does to what the adapters change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from veneer.adapter.merge import sum_bias, sum_weight
from veneer.adapter.protocol import LayerAdapter
from veneer.errors import UserError
from veneer.family.shards import WeightsFile
from veneer.family.single_file_layout import Place
from veneer.weights.safetensors import dtype_name

__all__ = ["Change", "MergedTensor", "Rounding", "merged_tensor"]


@dataclass(frozen=True)
class Change:
    """What adapters change in a tensor: one layer's weight or bias.

    Attributes:
        layer: its name, network first.
        part: ``weight`` or ``bias``.
        place: where in the tensor it lies.
        adapters: those of the layer, with the strength of each.
    """

    layer: str
    part: str
    place: Place
    adapters: Sequence[tuple[LayerAdapter, float]]


@dataclass(frozen=True)
class Rounding:
    """What rounding does to a change, in squared Frobenius norms.

    Attributes:
        error: |round(W + delta W) - (W + delta W)|^2.
        change: |delta W|^2.
    """

    error: float
    change: float

    @classmethod
    def total(cls, parts: Iterable[Rounding]) -> Rounding:
        """Return that of several layers together."""
        each = list(parts)
        return cls(math.fsum(one.error for one in each), math.fsum(one.change for one in each))

    @property
    def ratio(self) -> float:
        """|round(W + delta W) - (W + delta W)| / |delta W|; 0 where nothing changes."""
        return math.sqrt(self.error / self.change) if self.change else 0.0


@dataclass(frozen=True, eq=False)
class MergedTensor:
    """A tensor as it is written.

    Attributes:
        numbers: in the dtype of the file.
        scale: what they are to be multiplied by; None: they have none.
        rounding: of each change.
    """

    numbers: Tensor
    scale: Tensor | None
    rounding: Mapping[str, Rounding]


@torch.no_grad()
def merged_tensor(file: WeightsFile, name: str, changes: Sequence[Change], dtype: torch.dtype) -> MergedTensor:
    """Return a stored tensor with adapters in it: W + sum of w_i delta W_i, taken in float32 and rounded once.

    Args:
        file: of the base.
        name: of the tensor.
        changes: of it; none: it is only brought into another dtype.
        dtype: to be written in.

    Raises:
        UserError: the file cannot be read, or a sum is too large for the dtype, infinite or no number.
    """
    stored, scale = file.read(name), file.read_scale(name)
    wide = stored.to(torch.float64 if stored.dtype == torch.float64 else torch.float32)
    del stored
    if scale is not None:
        wide *= scale
    sizes = {_name(change): _apply(change, wide) for change in changes}
    scale = None if scale is None or dtype.itemsize > 1 else _scale_for(wide, scale, dtype)
    numbers = _rounded(wide, scale, dtype)
    rounding = {}
    for change in changes:
        error = _squared_norm(_read(change.place, numbers, scale, wide.dtype).sub_(change.place.take(wide)))
        if not math.isfinite(error):
            what = f"the merged {change.part} of {change.layer} is too large for {dtype_name(dtype)}"
            raise UserError(what, code="adapter.merge_overflow", remedy="use --dtype bfloat16 or float32")
        rounding[_name(change)] = Rounding(error, sizes[_name(change)])
    return MergedTensor(numbers, scale, rounding)


def _name(change: Change) -> str:
    return change.layer if change.part == "weight" else f"{change.layer}.{change.part}"


def _apply(change: Change, numbers: Tensor) -> float:
    """Add what adapters change to the numbers of a tensor, in place; return its squared Frobenius norm."""
    before = change.place.take(numbers)
    total = (sum_weight if change.part == "weight" else sum_bias)(before, change.adapters)
    if total is None:
        return 0.0
    change.place.put(total, numbers)
    size = _squared_norm(before.sub_(total))
    if not math.isfinite(size):
        what = f"the merged {change.part} of {change.layer} holds NaN or infinity"
        raise UserError(what, code="adapter.merge_not_finite", remedy="check the adapter, or use a lower strength")
    return size


def _squared_norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _scale_for(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the scale by which numbers fit a dtype: the old one, or a larger one where they have grown too large."""
    largest = numbers.abs()
    largest = largest.amax() if scale.ndim == 0 else largest.amax(dim=tuple(range(1, numbers.ndim)), keepdim=True)
    return torch.maximum(scale, largest / torch.finfo(dtype).max)


def _rounded(numbers: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return numbers in a dtype; one of 8 bits, which has no infinity, takes what is too large as its largest."""
    if dtype.itemsize > 1:
        return numbers.to(dtype)
    largest = torch.finfo(dtype).max
    scaled = numbers if scale is None else numbers / scale
    return scaled.clamp(-largest, largest).to(dtype)


def _read(place: Place, numbers: Tensor, scale: Tensor | None, wide: torch.dtype) -> Tensor:
    """Return the weight that is read from a written tensor, in a wide dtype."""
    if scale is None:
        return place.take(numbers).to(wide)
    return place.take(numbers.to(wide) * scale)
