"""Layers that an adapter may change: which a network has, and which of them an adapter's names mean."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeGuard, TypeVar, cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from veneer.adapter.peft_library import BaseTunerLayer
from veneer.adapter.protocol import AdapterWeights, Layer, LayerAdapter, WeightedLayer
from veneer.errors import UserError

__all__ = [
    "bias_of",
    "fit_to_layer",
    "fit_to_layers",
    "is_compiled",
    "is_offloaded",
    "is_wrapped",
    "layers_of",
    "layers_under",
    "modules_under",
    "nearest",
    "places_under",
    "set_offloaded",
    "weighted_layers_of",
]

_Kind = TypeVar("_Kind", bound=nn.Module)

_COMPILED = "_orig_mod"
"""The name under which what ``torch.compile`` returns holds what was compiled; its class takes seconds to import."""
_SHARDED = ("FSDPModule", "FullyShardedDataParallel")
"""Wrappers of PyTorch that split weights up, the newer and the older."""

_OFFLOADED = "_veneer_offloaded"

_OPTIONAL_LEVEL = "text_model."
"""A level of text encoders' layer names that is there or not, by class and by version of transformers."""


def layers_under(network: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Yield the linear layers and convolutions by dotted path, as files name them.

    What is around a layer or a network is looked through and no part of the path: an adapter that was injected,
    ``torch.compile``, ``torch.nn.DataParallel`` and ``DistributedDataParallel``.

    Raises:
        UserError: the network is split up among processes (FSDP), and has no layers of their own shapes.
    """
    for path, _, layer in _walk(network, "", "", _is_target):
        yield path, layer


def modules_under(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield all modules below a network by dotted path; wrappers are looked through, as by :func:`layers_under`."""
    for path, _, module in _walk(network, "", "", _is_module):
        yield path, module


def places_under(network: nn.Module) -> dict[str, str]:
    """Return where each layer hangs in a network, wrappers included, by its path without them."""
    return {path: place for path, place, _ in _walk(network, "", "", _is_target)}


def weighted_layers_of(networks: Mapping[str, nn.Module]) -> dict[str, WeightedLayer]:
    """Return the layers of several networks that an adapter's file may change, by path with the network's name first.

    These are the linear layers and convolutions, on which adapters are trained, and the norms, on which they are not.
    """
    return {
        f"{prefix}.{path}": cast(WeightedLayer, layer)
        for prefix, network in networks.items()
        for path, _, layer in _walk(network, "", "", _has_weight)
    }


def _is_target(module: nn.Module) -> TypeGuard[Layer]:
    return isinstance(module, nn.Linear | nn.Conv2d)


def _is_module(module: nn.Module) -> TypeGuard[nn.Module]:
    return True


def _has_weight(module: nn.Module) -> TypeGuard[nn.Module]:
    """Return whether a module has a weight that files change; a norm, of any class, is told by the one axis of its."""
    weight = module._parameters.get("weight")
    return _is_target(module) or (weight is not None and weight.ndim == 1 and not module._modules)


def _walk(
    module: nn.Module, path: str, place: str, is_wanted: Callable[[nn.Module], TypeGuard[_Kind]]
) -> Iterator[tuple[str, str, _Kind]]:
    """Yield path, place and layer of all wanted below a module, itself included."""
    _check_whole(module)
    wrapped = _wrapped_in(module)
    if wrapped:
        name, inner = wrapped
        yield from _walk(inner, path, _joined(place, name), is_wanted)
        return
    if path and is_wanted(module):
        yield path, place, module
    for name, child in module.named_children():
        yield from _walk(child, _joined(path, name), _joined(place, name), is_wanted)


def _wrapped_in(module: nn.Module) -> tuple[str, nn.Module] | None:
    """Return what a wrapper is around, and its name in it; None: it is no wrapper."""
    if isinstance(module, BaseTunerLayer):
        return "base_layer", module.get_base_layer()
    if isinstance(compiled := module._modules.get(_COMPILED), nn.Module):
        return _COMPILED, compiled
    if isinstance(module, nn.DataParallel | DistributedDataParallel):
        return "module", module.module
    return None


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _check_whole(module: nn.Module) -> None:
    if any(kind.__name__ in _SHARDED for kind in type(module).__mro__):
        what = f"a network is wrapped in {type(module).__name__}, which leaves each process a part of its weights"
        remedy = "give the network as it was before; Veneer trains on several devices by torchrun"
        raise UserError(what, code="adapter.sharded_network", remedy=remedy)


def is_compiled(network: nn.Module) -> bool:
    """Return whether ``torch.compile`` was called on a network or on a module within it."""
    return any(_COMPILED in one._modules or one._compiled_call_impl is not None for one in network.modules())


def set_offloaded(tensor: Tensor, is_offloaded: bool) -> None:
    """Note of a weight whether its numbers are on the device only while its block is computed."""
    if is_offloaded:
        vars(tensor)[_OFFLOADED] = True
    else:
        vars(tensor).pop(_OFFLOADED, None)


def is_offloaded(tensor: Tensor) -> bool:
    """Return whether a weight's numbers are on the device only while its block is computed."""
    return _OFFLOADED in vars(tensor)


def is_wrapped(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Return whether a network, or one of the wrappers around it, is of one of these kinds."""
    if isinstance(network, kinds):
        return True
    wrapped = _wrapped_in(network)
    return wrapped is not None and is_wrapped(wrapped[1], kinds)


def layers_of(networks: Mapping[str, nn.Module]) -> dict[str, Layer]:
    """Return the layers of several networks by path with the network's name first: ``transformer.proj_out``."""
    return {f"{prefix}.{path}": layer for prefix, net in networks.items() for path, layer in layers_under(net)}


def fit_to_layers(weights: AdapterWeights, layers: Mapping[str, WeightedLayer]) -> dict[str, LayerAdapter]:
    """Return an adapter under the names that these networks use, each part as its layer needs it.

    Raises:
        UserError: the adapter is of another architecture; the first layer that differs is named.
    """
    named: dict[str, LayerAdapter] = {}
    for given, adapter in weights.items():
        name = _own_name(given, layers)
        if name in named:
            raise UserError(f"the adapter has {name} twice, under two names", code="adapter.layer_twice")
        if name not in layers:
            raise _other_architecture(f"it changes {name} {adapter.shape}, which the base lacks")
        named[name] = fit_to_layer(name, adapter, layers[name])
    return named


def fit_to_layer(name: str, adapter: LayerAdapter, layer: WeightedLayer) -> LayerAdapter:
    """Return an adapter as a layer needs it.

    Args:
        name: of the layer, for the message.
        adapter: that is meant for it.
        layer: whose weight and bias it shall change.

    Raises:
        UserError: the layer has another size, or no bias where the adapter changes it.
    """
    shape, bias = tuple(layer.weight.shape), bias_of(layer)
    if (fitted := adapter.fitted(shape)) is None:
        raise _other_architecture(f"{name} is {adapter.shape} in it and {shape} in the base")
    if adapter.bias_size is not None and (bias is None or len(bias) != adapter.bias_size):
        found = "no bias" if bias is None else f"one of {len(bias)}"
        raise _other_architecture(f"{name} has a bias of {adapter.bias_size} in it and {found} in the base")
    return fitted


def bias_of(layer: WeightedLayer) -> Tensor | None:
    """Return a layer's bias; norms of some classes have no attribute of that name."""
    return getattr(layer, "bias", None)


def _other_architecture(difference: str) -> UserError:
    what = f"the adapter is of another architecture: {difference}"
    return UserError(what, code="adapter.other_architecture", remedy="use the base that it was trained on")


def _own_name(name: str, layers: Mapping[str, WeightedLayer]) -> str:
    prefix, _, path = name.partition(".")
    short = path.removeprefix(_OPTIONAL_LEVEL)
    other = f"{prefix}.{short if path != short else _OPTIONAL_LEVEL + path}"
    return other if name not in layers and other in layers else name


def nearest(target: str, paths: list[str]) -> list[str]:
    """Return what a mistyped target may have meant: up to three endings of the paths, or else all last names."""
    depth = target.count(".") + 1
    endings = {".".join(parts[-depth:]) for parts in (path.split(".") for path in paths)}
    last_names = {_last_name(path) for path in paths}
    return difflib.get_close_matches(target, sorted(endings | last_names), n=3, cutoff=0.4) or sorted(last_names)


def _last_name(path: str) -> str:
    """Return the last name, with the one before it where the last is a number: ``to_out.0``."""
    parts = path.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])
