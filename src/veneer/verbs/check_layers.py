"""Measure one layer of an adapter beside the base's weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from veneer.adapter.protocol import LayerAdapter
from veneer.adapter.svd import decompose
from veneer.weights.formats.places import place_of
from veneer.weights.rounding import ROUNDINGS

__all__ = ["LayerCheck", "Loss", "measure", "total_losses"]

_SAMPLED = 2**18
"""Weights of a layer that roundings are measured on: whole rows, evenly spaced, or all where there are fewer."""
_DEAD = 1e-6
"""Share of the energy of delta W below which a singular value counts as nothing."""


@dataclass(frozen=True)
class Loss:
    """What a number format swallows of a delta W that is merged into a base held in it.

    Attributes:
        error: ``|round(W + dW) - round(W) - dW| / |dW|`` in Frobenius norms: 0 if nothing is lost, 1 if as much as dW.
        unchanged: share of the sum of all |dW| at weights that are the same number with it and without.
    """

    error: float
    unchanged: float


@dataclass(frozen=True)
class LayerCheck:
    """One layer of the base that an adapter changes.

    Attributes:
        name: its full path, network first.
        kind: what its path has behind the blocks, such as ``attn1.to_q``.
        method: title of its method.
        norm: Frobenius norm of delta W; None: its method has no delta W.
        ratio: of the norm to that of the base's weight W.
        rank: r; None: its delta W is no product of thin matrices.
        dead_ranks: how many of its singular values each carry less than a millionth of the energy of delta W.
        losses: what each number format of ``ROUNDINGS`` swallows; none where delta W is zero.
    """

    name: str
    kind: str
    method: str
    norm: float | None
    ratio: float | None
    rank: int | None
    dead_ranks: int | None
    losses: Mapping[str, Loss]


@torch.no_grad()
def measure(path: str, adapter: LayerAdapter, weight: Tensor) -> LayerCheck:
    """Measure a layer's delta W.

    Args:
        path: of the layer, network first.
        adapter: of the layer.
        weight: W, in float32.
    """
    kind, title = place_of(path, "diffusers").kind, adapter.method.title
    if not adapter.method.is_mergeable:
        return LayerCheck(path, kind, title, None, None, None, None, {})
    delta = adapter.to("cpu", torch.float32).delta_weight(weight)
    norm, base = (float(torch.linalg.vector_norm(each, dtype=torch.float64)) for each in (delta, weight))
    ratio = norm / base if base else math.inf if norm else 0.0
    losses = _losses(weight, delta) if norm and math.isfinite(norm) else {}
    return LayerCheck(path, kind, title, norm, ratio, *_ranks(adapter), losses)


def total_losses(layers: Sequence[LayerCheck]) -> dict[str, Loss]:
    """Return what each number format swallows of all layers together."""
    measured = [(layer.norm, layer.losses) for layer in layers if layer.norm is not None and layer.losses]
    total = math.fsum(norm**2 for norm, _ in measured)
    return {name: _mean([(norm**2 / total, losses[name]) for norm, losses in measured]) for name in ROUNDINGS if total}


def _mean(parts: Sequence[tuple[float, Loss]]) -> Loss:
    """Return one loss for several layers, each with its share of the energy of delta W."""
    error = math.sqrt(math.fsum(share * loss.error**2 for share, loss in parts))
    return Loss(error, math.fsum(share * loss.unchanged for share, loss in parts))


def _ranks(adapter: LayerAdapter) -> tuple[int | None, int | None]:
    """Return the rank of a delta W that is a product of thin matrices, and how many of its ranks carry nothing."""
    product = adapter.low_rank()
    if product is None:
        return None, None
    energies = decompose(product).values.square()
    alive = int((energies >= _DEAD * energies.sum()).sum()) if bool(energies.any()) else 0
    return product.rank, product.rank - alive


def _losses(weight: Tensor, delta: Tensor) -> dict[str, Loss]:
    weight, delta = _sampled(weight), _sampled(delta)
    size, total = float(torch.linalg.vector_norm(delta)), float(delta.abs().sum())
    if not size:  # the rows that were taken are zero
        return {name: Loss(0.0, 0.0) for name in ROUNDINGS}
    losses = {}
    for name, rounded in ROUNDINGS.items():
        change = rounded(weight + delta) - rounded(weight)
        error = float(torch.linalg.vector_norm(change - delta)) / size
        losses[name] = Loss(error, float(delta.abs()[change == 0].sum()) / total)
    return losses


def _sampled(weight: Tensor) -> Tensor:
    """Return rows of a weight, evenly spaced over it, that have at most as many numbers as are measured."""
    rows = weight.reshape(len(weight), -1)
    most = max(1, _SAMPLED // rows.shape[1])
    return rows[:: -(-len(rows) // most)].contiguous()
