"""A merged base's layers run on random inputs, against the base with the adapters computed beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from veneer.adapter.protocol import LayerAdapter
from veneer.family.base_weights import BaseWeights
from veneer.rng import torch_generator

__all__ = ["Difference", "random_input_difference"]

_INPUTS = 8
_PIECE = 2**20  # entries of a weight that are in float64 at a time


@dataclass(frozen=True)
class Difference:
    """How far the outputs of merged layers are from those of the base with the adapters beside it.

    Attributes:
        layers: how many layers were run.
        mean: |y - y'| / |y'|, the mean over layers and inputs.
        maximum: the largest.
        of_change: |y - y'| / |y' - W0 x|, the mean: as a share of what the adapters do.
    """

    layers: int
    mean: float
    maximum: float
    of_change: float


Adapters = Sequence[tuple[LayerAdapter, float]]


@torch.no_grad()
def random_input_difference(before: BaseWeights, after: BaseWeights, layers: Mapping[str, Adapters]) -> Difference:
    """Run layers of a merged base on random inputs, against ``h = W0 x + sum of w_i s_i B_i A_i x`` in float64.

    A convolution is run at one place of its input. An adapter that is no product of two thin matrices is applied as its
    delta W.

    Args:
        before: the base.
        after: the merged base, as it was written.
        layers: to run: the adapters of each with their strengths.

    Raises:
        UserError: a file cannot be read.
    """
    outputs, changes = zip(*(_differences(before, after, layer, own) for layer, own in layers.items()), strict=True)
    relative, of_change = torch.cat(outputs), torch.cat(changes)
    return Difference(len(layers), float(relative.mean()), float(relative.max()), float(of_change.mean()))


def _differences(before: BaseWeights, after: BaseWeights, layer: str, adapters: Adapters) -> tuple[Tensor, Tensor]:
    """Return for each input the difference as a share of the output, and of the change."""
    weight = before.read(layer)
    size = weight[0].numel() if weight.ndim > 1 else weight.numel()
    inputs = torch.randn(size, _INPUTS, dtype=torch.float64, generator=torch_generator(0, "merge", layer))
    base = _product(weight, inputs)
    expected = base + sum(strength * _beside(adapter, weight, inputs) for adapter, strength in adapters)
    found = _product(after.read(layer), inputs)
    difference = (found - expected).norm(dim=0)
    return difference / _safe(expected.norm(dim=0)), difference / _safe((expected - base).norm(dim=0))


def _beside(adapter: LayerAdapter, weight: Tensor, inputs: Tensor) -> Tensor:
    """Return what an adapter adds to a layer's output."""
    if (product := adapter.low_rank()) is not None:
        return product.scale * _product(product.up, _product(product.down, inputs))
    wide = adapter.to("cpu", torch.float32)
    return _product(wide.delta_weight(weight.float()), inputs)


def _product(weight: Tensor, inputs: Tensor) -> Tensor:
    """Return W x in float64, of which no more than a piece is in memory; the weight of a norm multiplies each input."""
    if weight.ndim == 1:
        return weight.double()[:, None] * inputs
    flat = weight.flatten(1)
    rows = max(1, _PIECE // flat.shape[1])
    pieces = (flat[start : start + rows] for start in range(0, len(flat), rows))
    return torch.cat([piece.double() @ inputs for piece in pieces])


def _safe(norm: Tensor) -> Tensor:
    return norm.clamp_min(torch.finfo(norm.dtype).tiny)
