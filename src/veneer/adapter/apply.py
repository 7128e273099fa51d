"""An adapter in a base for a while: merged where there are weights to merge into, else beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from veneer.adapter.layers import fit_to_layers, layers_of
from veneer.adapter.merge import is_mergeable, merge
from veneer.adapter.protocol import AdapterWeights

__all__ = ["apply_adapter"]


@contextmanager
def apply_adapter(networks: Mapping[str, nn.Module], weights: AdapterWeights) -> Iterator[None]:
    """Make the networks the base with an adapter inside, and the base again afterwards, bit for bit.

    The adapter is merged into the weights. A quantised layer has none to merge into: there the adapter's part is
    computed beside the layer, which takes no memory but that of the adapter.

    Raises:
        UserError: the adapter is of another architecture; no network has been changed then.
    """
    layers = layers_of(networks)
    fitted = fit_to_layers(weights, layers)
    beside = {name: adapter for name, adapter in fitted.items() if not is_mergeable(adapter, layers[name])}
    merged = merge(networks, [({name: adapter for name, adapter in fitted.items() if name not in beside}, 1.0)])
    with ExitStack() as stack:
        stack.callback(merged.undo)
        for name, adapter in beside.items():
            hook = _as_hook(adapter.bypass(layers[name]))
            stack.callback(layers[name].register_forward_hook(hook).remove)
        yield


def _as_hook(add: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """Return a forward hook that changes a layer's output by its input and output."""

    def hook(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        (x,) = arguments
        return add(x, output)

    return hook
