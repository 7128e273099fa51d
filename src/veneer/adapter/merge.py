"""Adapters added to each other, and merged into the networks' weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from veneer.adapter.layers import bias_of, fit_to_layers, is_offloaded, weighted_layers_of
from veneer.adapter.lora import LoraFactors, concatenate
from veneer.adapter.protocol import (
    AdapterWeights,
    LayerAdapter,
    LowRank,
    WeightedLayer,
    check_strength,
    low_rank_of,
    method_without_low_rank,
)
from veneer.errors import UserError

__all__ = ["MergedAdapters", "combine", "is_mergeable", "merge", "sum_bias", "sum_weight"]


def combine(adapters: Sequence[tuple[AdapterWeights, float]]) -> dict[str, LoraFactors]:
    """Return one LoRA that does what the weighted sum of several adapters does, exactly: their ranks side by side.

    Args:
        adapters: whose updates are products of two thin matrices, as LoRA's are, with the strength of each.

    Raises:
        UserError: one is of a method without such products, two of them disagree on the shape of a layer, or a strength
            is no finite number.
    """
    _check_strengths(adapters)
    for weights, _ in adapters:
        if (method := method_without_low_rank(weights)) is not None:
            what = f"a {method.title} adapter cannot be combined with others into one"
            remedy = "merge the adapters into the base instead, each with its strength"
            raise UserError(what, code="adapter.cannot_combine", remedy=remedy)
    parts = [(low_rank_of(weights), strength) for weights, strength in adapters]
    names = sorted({name for products, _ in parts for name in products})
    return {name: _combined(name, [(products[name], s) for products, s in parts if name in products]) for name in names}


def _combined(name: str, parts: list[tuple[LowRank, float]]) -> LoraFactors:
    shapes = {part.shape for part, _ in parts}
    if len(shapes) > 1:
        what = f"the adapters are of different architectures: {name} is {' and '.join(map(str, shapes))}"
        raise UserError(what, code="adapter.different_architectures")
    return concatenate(parts)


def _check_strengths(adapters: Sequence[tuple[AdapterWeights, float]]) -> None:
    for place, (_, strength) in enumerate(adapters, start=1):
        check_strength(strength, f"adapter {place} of {len(adapters)}")


class _Swap(NamedTuple):
    """A parameter of a layer that another has taken the place of."""

    layer: WeightedLayer
    name: str
    original: nn.Parameter
    merged: nn.Parameter


class MergedAdapters:
    """Adapters that are in the networks' weights and biases; made by :func:`merge`."""

    def __init__(self, swaps: list[_Swap]) -> None:
        self._swaps = swaps

    def move_originals(self, device: torch.device) -> None:
        """Move the original weights and biases to another device, where they wait for :meth:`undo`."""
        for swap in self._swaps:
            swap.original.data = swap.original.data.to(device)

    def undo(self) -> None:
        """Put the original weights and biases back, bit for bit; a second call does nothing.

        Raises:
            UserError: other adapters were merged later and are still in.
        """
        if any(getattr(swap.layer, swap.name) is not swap.merged for swap in self._swaps):
            what = "other adapters were merged after these"
            raise UserError(what, code="adapter.merged_over", remedy="undo those first")
        for layer, name, original, merged in self._swaps:
            original.data = original.data.to(merged.device, merged.dtype)  # the network may have moved meanwhile
            setattr(layer, name, original)
        self._swaps = []


def merge(networks: Mapping[str, nn.Module], adapters: Sequence[tuple[AdapterWeights, float]]) -> MergedAdapters:
    """Make each weight W0 + sum of w_i delta W_i, at the base's own speed (Hu et al. 2021, section 4.1).

    Biases that adapters change become b0 + sum of w_i delta b_i. The delta W of a method that is not additive is taken
    of W0 for each adapter, so their order does not matter. The originals are set aside, not written over. The sum is
    taken in float32 at least, and rounded once.

    Args:
        networks: the base's, by prefix.
        adapters: with the strength w_i of each.

    Raises:
        UserError: an adapter is of another architecture or of a method that has no delta W, a strength is no finite
            number, or the base is quantised; no network has been changed then.
    """
    _check_strengths(adapters)
    layers = weighted_layers_of(networks)
    fitted = [(fit_to_layers(weights, layers), strength) for weights, strength in adapters]
    for weights, _ in fitted:
        _check_mergeable(weights, layers)
    swaps = []
    for path in sorted({path for weights, _ in fitted for path in weights}):
        parts = [(weights[path], strength) for weights, strength in fitted if path in weights]
        for name, original, total in _sums(layers[path], parts):
            merged = nn.Parameter(total, requires_grad=original.requires_grad)
            setattr(layers[path], name, merged)
            swaps.append(_Swap(layers[path], name, original, merged))
    return MergedAdapters(swaps)


def _sums(layer: WeightedLayer, parts: list[tuple[LayerAdapter, float]]) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Yield the parameters of a layer that adapters change, each with its name before and its sum behind."""
    weight, bias = layer.weight, bias_of(layer)
    assert isinstance(weight, nn.Parameter)
    yield "weight", weight, sum_weight(weight, parts)
    if isinstance(bias, nn.Parameter) and (total := sum_bias(bias, parts)) is not None:
        yield "bias", bias, total


def is_mergeable(adapter: LayerAdapter, layer: WeightedLayer) -> bool:
    """Return whether an adapter has a delta W and the layer a weight that another can take the place of."""
    return adapter.method.is_mergeable and _has_weight(layer)


def _has_weight(layer: WeightedLayer) -> bool:
    """Return whether a layer has a weight of its own that is there; what is quantised has none."""
    weight = layer._parameters.get("weight")
    return isinstance(weight, nn.Parameter) and not is_offloaded(weight)


def _check_mergeable(weights: AdapterWeights, layers: Mapping[str, WeightedLayer]) -> None:
    for name, adapter in weights.items():
        if not adapter.method.is_mergeable:
            what = f"{name} has a {adapter.method.title} adapter, which cannot be merged into a weight"
            raise UserError(what, code="adapter.cannot_merge", remedy="sample with it beside the base")
        if layers[name].weight.is_meta or is_offloaded(layers[name].weight):
            what = f"the weight of {name} is not in memory, so nothing can be merged into it"
            remedy = "take accelerate's hooks off first (remove_hook_from_module), or load the base whole"
            raise UserError(what, code="adapter.offloaded_base", remedy=remedy)
        if not _has_weight(layers[name]):
            what = f"{name} is quantised, so nothing can be merged into its weight"
            raise UserError(what, code="adapter.quantised_base", remedy="load the base in full for that")


@torch.no_grad()
def sum_weight(weight: Tensor, parts: Sequence[tuple[LayerAdapter, float]]) -> Tensor:
    """Return W0 + sum of w_i delta W_i in the weight's dtype.

    Args:
        weight: W0.
        parts: adapters that fit the layer, with the strength w_i of each.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    total = weight.detach().to(wide, copy=True)
    base = total if all(part.method.is_additive for part, _ in parts) else total.clone()
    for part, strength in parts:
        total += strength * part.to(weight.device, wide).delta_weight(base)
    return total.to(weight.dtype)


@torch.no_grad()
def sum_bias(bias: Tensor, parts: Sequence[tuple[LayerAdapter, float]]) -> Tensor | None:
    """Return b0 + sum of w_i delta b_i in the bias' dtype; None: no adapter changes it.

    Args:
        bias: b0.
        parts: adapters that fit the layer, with the strength w_i of each.
    """
    wide = torch.promote_types(bias.dtype, torch.float32)
    base = bias.detach().to(wide)
    deltas = [(part.to(bias.device, wide).delta_bias(base), strength) for part, strength in parts]
    changes = [strength * delta for delta, strength in deltas if delta is not None]
    return torch.stack([base, *changes]).sum(0).to(bias.dtype) if changes else None
