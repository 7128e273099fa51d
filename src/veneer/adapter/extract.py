"""The LoRA nearest to a change of a layer's weight, by its singular value decomposition, and what it has of the change.

kohya's ``extract_lora_from_models.py`` clamps the largest 1 % of the entries of A and B (its clamp quantile), which
loses part of what the decomposition found (sd-scripts issue 1610). Singular vectors have entries of at most 1, so
nothing is clamped here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from veneer.adapter.lora import LoraFactors, delta_weight
from veneer.adapter.resize import Criterion
from veneer.adapter.svd import Decomposition, decompose_dense
from veneer.rng import torch_generator

__all__ = ["Extracted", "decompose_largest", "extract"]

_OVERSAMPLE = 16
_MOST_ITERATIONS, _SETTLED = 50, 1e-4  # iterations end where one adds no larger share of the norm that is kept
_LARGE = 1024  # shorter side of a matrix from which on the whole decomposition takes seconds
_MOST_DRAWN = 1 / 6  # share of that side: of more columns the whole decomposition is as fast


@dataclass(frozen=True, eq=False)
class Extracted:
    """A LoRA and what it has of the change that it was made of.

    Attributes:
        factors: the LoRA.
        squared_norm: |delta W|^2 of the change.
        squared_error: |delta W - s B A|^2, of the factors as they are.
    """

    factors: LoraFactors
    squared_norm: float
    squared_error: float

    @property
    def squared_norm_left(self) -> float:
        """The part of |delta W|^2 that the LoRA has."""
        return max(0.0, self.squared_norm - self.squared_error)


@torch.no_grad()
def extract(delta: Tensor, rank: int | None, criterion: Criterion | None = None, *, key: str = "") -> Extracted:
    """Return the LoRA that is nearest to a change in the Frobenius norm (Eckart and Young 1936).

    A convolution's change is taken as a matrix (out, in * kh * kw): A is (r, in, kh, kw), B (out, r, 1, 1). Of a large
    matrix, of which few singular vectors are asked for, these are found by :func:`decompose_largest`, else by the whole
    decomposition.

    Args:
        delta: the change of the weight, (out, in) or (out, in, kh, kw), float32, not all zero.
        rank: of the LoRA, at most; None: no limit.
        criterion: what it has to keep, unless the rank does not allow it; None: all that the rank allows.
        key: names the layer: numbers that are drawn are keyed by it.
    """
    side = min(delta.flatten(1).shape)
    if rank is not None and criterion is None and side >= _LARGE and rank + _OVERSAMPLE <= _MOST_DRAWN * side:
        found = decompose_largest(delta, rank, key)
    else:
        found = decompose_dense(delta)
    wanted = len(found.values) if criterion is None else criterion.rank(found.values)
    factors = found.cut(wanted if rank is None else min(rank, wanted), delta.dtype)
    return Extracted(factors, _squared_norm(delta), _squared_norm(delta - delta_weight(factors)))


def decompose_largest(delta: Tensor, count: int, key: str) -> Decomposition:
    """Return the largest singular values and vectors of a change, by random projections and subspace iterations.

    Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1, with 16 more columns than asked for, iterated until the
    norm that is kept grows by less than 1 in 10,000. It is within 0.1 % of the best, in pure noise too.

    Args:
        delta: the change.
        count: how many.
        key: names the layer; the numbers that are drawn depend on it alone.
    """
    matrix = delta.flatten(1)
    numbers = torch.randn(matrix.shape[1], count + _OVERSAMPLE, generator=torch_generator(0, "extract", key))
    basis = torch.linalg.qr(matrix @ numbers.to(matrix.dtype)).Q
    before = 0.0
    for _ in range(_MOST_ITERATIONS):
        product = matrix.T @ basis
        if (kept := float(product.norm())) - before <= _SETTLED * kept:
            break
        before, basis = kept, torch.linalg.qr(matrix @ torch.linalg.qr(product).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return Decomposition((basis @ left)[:, :count], values[:count], right[:count], tuple(delta.shape))


def _squared_norm(tensor: Tensor) -> float:
    return math.pow(float(torch.linalg.vector_norm(tensor, dtype=torch.float64)), 2)
