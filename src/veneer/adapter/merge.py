"""Adapters added to each other, and merged into the networks' weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from veneer.adapter.layers import fit_to_layers, layers_of
from veneer.adapter.lora import LoraFactors, concatenate
from veneer.adapter.protocol import (
    AdapterWeights,
    Layer,
    LayerAdapter,
    LowRank,
    check_strength,
    low_rank_of,
    method_without_low_rank,
)
from veneer.errors import UserError

__all__ = ["MergedAdapters", "combine", "is_mergeable", "merge"]


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


class MergedAdapters:
    """Adapters that are in the networks' weights; made by :func:`merge`."""

    def __init__(self, swaps: list[tuple[Layer, nn.Parameter, nn.Parameter]]) -> None:
        self._swaps = swaps

    def undo(self) -> None:
        """Put the original weights back, bit for bit; a second call does nothing.

        Raises:
            UserError: other adapters were merged later and are still in.
        """
        if any(layer.weight is not merged for layer, _, merged in self._swaps):
            what = "other adapters were merged after these"
            raise UserError(what, code="adapter.merged_over", remedy="undo those first")
        for layer, original, merged in self._swaps:
            original.data = original.data.to(merged.device, merged.dtype)  # the network may have moved meanwhile
            layer.weight = original
        self._swaps = []


def merge(networks: Mapping[str, nn.Module], adapters: Sequence[tuple[AdapterWeights, float]]) -> MergedAdapters:
    """Make each weight W0 + sum of w_i delta W_i, at the base's own speed (Hu et al. 2021, section 4.1).

    The delta W of a method that is not additive is taken of W0 for each adapter, so their order does not matter. The
    originals are set aside, not written over. The sum is taken in float32 at least, and rounded once.

    Args:
        networks: the base's, by prefix.
        adapters: with the strength w_i of each.

    Raises:
        UserError: an adapter is of another architecture or of a method that has no delta W, a strength is no finite
            number, or the base is quantised; no network has been changed then.
    """
    _check_strengths(adapters)
    layers = layers_of(networks)
    fitted = [(fit_to_layers(weights, layers), strength) for weights, strength in adapters]
    for weights, _ in fitted:
        _check_mergeable(weights, layers)
    swaps = []
    for name in sorted({name for weights, _ in fitted for name in weights}):
        original = layers[name].weight
        assert isinstance(original, nn.Parameter)
        total = _sum(original, [(weights[name], strength) for weights, strength in fitted if name in weights])
        merged = nn.Parameter(total, requires_grad=original.requires_grad)
        layers[name].weight = merged
        swaps.append((layers[name], original, merged))
    return MergedAdapters(swaps)


def is_mergeable(adapter: LayerAdapter, layer: Layer) -> bool:
    """Return whether an adapter has a delta W and the layer a weight that another can take the place of."""
    return adapter.method.is_mergeable and _has_weight(layer)


def _has_weight(layer: Layer) -> bool:
    """Return whether a layer has a weight of its own; what is quantised has none."""
    return isinstance(layer._parameters.get("weight"), nn.Parameter)


def _check_mergeable(weights: AdapterWeights, layers: Mapping[str, Layer]) -> None:
    for name, adapter in weights.items():
        if not adapter.method.is_mergeable:
            what = f"{name} has a {adapter.method.title} adapter, which cannot be merged into a weight"
            raise UserError(what, code="adapter.cannot_merge", remedy="sample with it beside the base")
        if layers[name].weight.is_meta:
            what = f"the weight of {name} is not in memory, so nothing can be merged into it"
            remedy = "take accelerate's hooks off first (remove_hook_from_module), or load the base whole"
            raise UserError(what, code="adapter.offloaded_base", remedy=remedy)
        if not _has_weight(layers[name]):
            what = f"{name} is quantised, so nothing can be merged into its weight"
            raise UserError(what, code="adapter.quantised_base", remedy="load the base in full for that")


@torch.no_grad()
def _sum(weight: Tensor, parts: list[tuple[LayerAdapter, float]]) -> Tensor:
    """Return W0 + sum of w_i delta W_i in the weight's dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    total = weight.detach().to(wide, copy=True)
    base = total if all(part.method.is_additive for part, _ in parts) else total.clone()
    for part, strength in parts:
        total += strength * part.to(weight.device, wide).delta_weight(base)
    return total.to(weight.dtype)
