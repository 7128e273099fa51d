"""An adapter of a lower rank that does as nearly the same as any of that rank can."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import AdapterWeights
from veneer.errors import UserError

__all__ = ["Spectrum", "resize", "spectrum"]


@dataclass(frozen=True)
class Spectrum:
    """The singular values of an adapter's delta W, all layers' together.

    Attributes:
        by_layer: each layer's, falling, float64.
    """

    by_layer: Mapping[str, Tensor]

    def kept(self, rank: int) -> float:
        """Share of the Frobenius norm of all delta W that is left at a rank; 1 for an adapter that is zero."""
        left = sum(float((values[:rank] ** 2).sum()) for values in self.by_layer.values())
        total = sum(float((values**2).sum()) for values in self.by_layer.values())
        return math.sqrt(left / total) if total else 1.0


def spectrum(factors: AdapterWeights) -> Spectrum:
    """The singular values of each layer's delta W, without forming it."""
    return Spectrum({name: _decompose(each)[1] for name, each in factors.items()})


def resize(factors: AdapterWeights, rank: int) -> dict[str, LoraFactors]:
    """The adapter of a rank that is nearest to this one, layer by layer, in the Frobenius norm (Eckart and Young 1936).

    delta W = s B A is cut after its ``rank`` largest singular values. With B = Qb Rb and A^T = Qa Ra they are those of
    the small matrix s Rb Ra^T, so that of two matrices d x r and r x k nothing larger than r x r is decomposed. The
    values are shared evenly by both new factors, and alpha is their rank, which makes the strength 1. A layer whose
    rank is as low already is left as it is.

    Args:
        factors: of the adapter.
        rank: to cut to.

    Raises:
        UserError: the rank is not lower than the adapter's.
    """
    highest = max((each.rank for each in factors.values()), default=0)
    if rank < 1:
        raise UserError(f"the rank is {rank}", remedy="use 1 or more")
    if rank >= highest:
        raise UserError(f"the adapter's rank is {highest}, which is not more than {rank}", remedy="use a lower one")
    return {name: each if each.rank <= rank else _cut(each, rank) for name, each in factors.items()}


def _cut(each: LoraFactors, rank: int) -> LoraFactors:
    left, values, right = _decompose(each)
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    up = (left[:, :rank] * root).reshape(each.up.shape[0], rank, *each.up.shape[2:])
    down = (root[:, None] * right[:rank]).reshape(rank, *each.down.shape[1:])
    return LoraFactors(down.to(each.down.dtype).contiguous(), up.to(each.up.dtype).contiguous(), float(rank))


def _decompose(each: LoraFactors) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, n), singular values (n,) and V^T (n, in) of delta W, n = min(r, out, in), in float64."""
    up_basis, up_rest = torch.linalg.qr(each.up.flatten(1).double())
    down_basis, down_rest = torch.linalg.qr(each.down.flatten(1).double().T)
    left, values, right = torch.linalg.svd(each.scale * up_rest @ down_rest.T, full_matrices=False)
    return up_basis @ left, values, right @ down_basis.T
