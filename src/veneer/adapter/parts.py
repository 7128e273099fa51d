"""The part of an adapter that changes a layer's weight, without a trained bias beside it."""

from __future__ import annotations

from dataclasses import replace

from veneer.adapter.biased import BiasedAdapter
from veneer.adapter.full import FullDifference
from veneer.adapter.protocol import LayerAdapter

__all__ = ["without_bias"]


def without_bias(adapter: LayerAdapter) -> LayerAdapter | None:
    """Return what changes the weight; None where only the bias is changed."""
    if isinstance(adapter, BiasedAdapter):
        return adapter.inner
    if isinstance(adapter, FullDifference) and adapter.BIAS in adapter.tensors:
        tensors = {part: tensor for part, tensor in adapter.tensors.items() if part != adapter.BIAS}
        return replace(adapter, tensors=tensors) if tensors else None
    return adapter
