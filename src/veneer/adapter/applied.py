"""An adapter in a base for a while: merged where there are weights to merge into, else beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from veneer.adapter.layers import fit, layers_of
from veneer.adapter.lora import LoraFactors
from veneer.adapter.merge import is_mergeable, merge
from veneer.adapter.protocol import AdapterWeights

__all__ = ["applied"]


@contextmanager
def applied(networks: Mapping[str, nn.Module], factors: AdapterWeights) -> Iterator[None]:
    """Within, the networks are the base with an adapter; after, the base again, bit for bit.

    It is merged into the weights. A quantised layer has none to merge into: there ``(alpha/r) B A x`` is added to what
    the layer gives (Hu et al. 2021, eq. 3), which takes no memory but that of A and B.

    Raises:
        UserError: the adapter is of another architecture; no network has been changed then.
    """
    layers = layers_of(networks)
    fitted = fit(factors, layers)
    beside = {name: each for name, each in fitted.items() if not is_mergeable(layers[name])}
    merged = merge(networks, [({name: each for name, each in fitted.items() if name not in beside}, 1.0)])
    with ExitStack() as stack:
        stack.callback(merged.undo)
        for name, each in beside.items():
            stack.callback(layers[name].register_forward_hook(_adding(each)).remove)
        yield


def _adding(factors: LoraFactors) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def add(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        (x,) = arguments
        down, up = factors.down.to(x.device), factors.up.to(x.device)
        low = functional.linear(x if torch.is_autocast_enabled(x.device.type) else x.to(down.dtype), down)
        return output + factors.scale * functional.linear(low, up).to(output.dtype)

    return add
