"""An adapter cut to a lower rank at which it does as nearly the same as any of that rank can."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import AdapterWeights, LayerAdapter, LowRank, low_rank_of, method_without_low_rank
from veneer.adapter.svd import decompose
from veneer.errors import UserError

__all__ = ["Spectrum", "highest_rank", "resize", "spectrum"]


@dataclass(frozen=True)
class Spectrum:
    """The singular values of an adapter's delta W, all layers' together.

    Attributes:
        by_layer: each layer's, falling, float64.
    """

    by_layer: Mapping[str, Tensor]

    def retained(self, rank: int) -> float:
        """Return the share of the Frobenius norm of all delta W left at a rank; 1 for an adapter that is zero."""
        left = sum(float((values[:rank] ** 2).sum()) for values in self.by_layer.values())
        total = sum(float((values**2).sum()) for values in self.by_layer.values())
        return math.sqrt(left / total) if total else 1.0


def highest_rank(weights: AdapterWeights) -> int:
    """Return the highest rank that an adapter has on any layer.

    Raises:
        UserError: it is of a method that has no rank to cut.
    """
    return max((product.rank for product in _products(weights).values()), default=0)


def spectrum(weights: AdapterWeights) -> Spectrum:
    """Return the singular values of each layer's delta W, without forming it.

    Raises:
        UserError: it is of a method that has no rank to cut.
    """
    return Spectrum({name: decompose(product).values for name, product in _products(weights).items()})


def resize(weights: AdapterWeights, rank: int) -> dict[str, LayerAdapter]:
    """Return the adapter of a rank that is nearest to this one, layer by layer, in the Frobenius norm.

    delta W = s B A is cut after its ``rank`` largest singular values (Eckart and Young 1936). With B = Qb Rb and
    A^T = Qa Ra they are those of the small matrix s Rb Ra^T, so that of two matrices d x r and r x k nothing larger
    than r x r is decomposed. The values are shared evenly by both new factors, and alpha is their rank, which makes the
    strength 1. A layer whose rank is as low already is left as it is.

    Args:
        weights: the adapter, whose updates are products of two thin matrices, as LoRA's are.
        rank: to cut to.

    Raises:
        UserError: the rank is not lower than the adapter's, or the adapter is of a method that has no rank to cut.
    """
    products, highest = _products(weights), highest_rank(weights)
    if rank < 1:
        raise UserError(f"the rank is {rank}", code="adapter.bad_rank", remedy="use 1 or more")
    if rank >= highest:
        what = f"the adapter's rank is {highest}, which is not more than {rank}"
        raise UserError(what, code="adapter.rank_not_lower", remedy="use a lower one")
    return {name: weights[name] if each.rank <= rank else _cut(each, rank) for name, each in products.items()}


def _products(weights: AdapterWeights) -> dict[str, LowRank]:
    if (method := method_without_low_rank(weights)) is not None:
        what = f"a {method.title} adapter cannot be cut to a lower rank"
        raise UserError(what, code="adapter.cannot_resize", remedy="train it anew with a lower adapter.rank")
    return low_rank_of(weights)


def _cut(product: LowRank, rank: int) -> LoraFactors:
    return decompose(product).cut(rank, torch.promote_types(product.up.dtype, product.down.dtype))
