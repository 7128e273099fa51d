"""An adapter in a base for a while: merged where there are weights to merge into, else beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from veneer.adapter.layers import fit_to_layers, is_compiled, weighted_layers_of
from veneer.adapter.merge import is_mergeable, merge
from veneer.adapter.protocol import AdapterWeights
from veneer.errors import UserError

__all__ = ["apply_adapter"]


@contextmanager
def apply_adapter(
    networks: Mapping[str, nn.Module], weights: AdapterWeights, *, originals: torch.device | None = None
) -> Iterator[None]:
    """Make the networks the base with an adapter inside, and the base again afterwards, bit for bit.

    The adapter is merged into the weights. A quantised layer has none to merge into: there the adapter's part is
    computed beside the layer, which takes no memory but that of the adapter.

    Args:
        networks: the base's, by prefix.
        weights: the adapter.
        originals: device that the weights without it are kept on meanwhile; None: their own.

    Raises:
        UserError: the adapter is of another architecture, or a network without weights to merge into is compiled; no
            network has been changed then.
    """
    layers = weighted_layers_of(networks)
    fitted = fit_to_layers(weights, layers)
    beside = {name: adapter for name, adapter in fitted.items() if not is_mergeable(adapter, layers[name])}
    _check_not_compiled(networks, beside)
    merged = merge(networks, [({name: adapter for name, adapter in fitted.items() if name not in beside}, 1.0)])
    with ExitStack() as stack:
        stack.callback(merged.undo)
        if originals is not None:
            merged.move_originals(originals)
        for name, adapter in beside.items():
            hook = _as_hook(adapter.bypass(layers[name]))
            stack.callback(layers[name].register_forward_hook(hook).remove)
        yield


def _check_not_compiled(networks: Mapping[str, nn.Module], beside: Collection[str]) -> None:
    """Refuse to compute beside the layers of a compiled network: its forward pass does not see later hooks."""
    for prefix in sorted({name.partition(".")[0] for name in beside}):
        if is_compiled(networks[prefix]):
            what = f"{prefix} is compiled, which leaves no place for an adapter beside its quantised layers"
            raise UserError(what, code="adapter.compiled", remedy="do not compile it")


def _as_hook(add: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """Return a forward hook that changes a layer's output by its input and output."""

    def hook(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        (x,) = arguments
        return add(x, output)

    return hook
