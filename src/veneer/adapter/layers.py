"""Layers that an adapter may change: which a network has, and which of them an adapter's names mean."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from veneer.adapter.protocol import AdapterWeights, Layer, LayerAdapter
from veneer.errors import UserError

__all__ = ["fit_to_layers", "is_compiled", "is_wrapped", "layers_of", "layers_under", "nearest", "places_under"]

_COMPILED = "_orig_mod"
"""The name under which what ``torch.compile`` returns holds what was compiled; its class takes seconds to import."""
_SHARDED = ("FSDPModule", "FullyShardedDataParallel")
"""Wrappers of PyTorch that split weights up, the newer and the older."""

_OPTIONAL_LEVEL = "text_model."
"""A level of text encoders' layer names that is there or not, by class and by version of transformers."""


def layers_under(network: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Yield the linear layers and convolutions by dotted path, as files name them.

    What is around a layer or a network is looked through and no part of the path: an adapter that was injected,
    ``torch.compile``, ``torch.nn.DataParallel`` and ``DistributedDataParallel``.

    Raises:
        UserError: the network is split up among processes (FSDP), and has no layers of their own shapes.
    """
    for path, _, layer in _walk(network, "", ""):
        yield path, layer


def places_under(network: nn.Module) -> dict[str, str]:
    """Return where each layer hangs in a network, wrappers included, by its path without them."""
    return {path: place for path, place, _ in _walk(network, "", "")}


def _walk(module: nn.Module, path: str, place: str) -> Iterator[tuple[str, str, Layer]]:
    """Yield path, place and layer of all below a module, itself included."""
    _check_whole(module)
    wrapped = _wrapped_in(module)
    if wrapped:
        name, inner = wrapped
        yield from _walk(inner, path, _joined(place, name))
        return
    if path and isinstance(module, nn.Linear | nn.Conv2d):
        yield path, place, module
    for name, child in module.named_children():
        yield from _walk(child, _joined(path, name), _joined(place, name))


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


def is_wrapped(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Return whether a network, or one of the wrappers around it, is of one of these kinds."""
    if isinstance(network, kinds):
        return True
    wrapped = _wrapped_in(network)
    return wrapped is not None and is_wrapped(wrapped[1], kinds)


def layers_of(networks: Mapping[str, nn.Module]) -> dict[str, Layer]:
    """Return the layers of several networks by path with the network's name first: ``transformer.proj_out``."""
    return {f"{prefix}.{path}": layer for prefix, net in networks.items() for path, layer in layers_under(net)}


def fit_to_layers(weights: AdapterWeights, layers: Mapping[str, Layer]) -> dict[str, LayerAdapter]:
    """Return an adapter under the names that these networks use, once each part is known to fit its layer.

    Raises:
        UserError: the adapter is of another architecture; the first layer that differs is named.
    """
    named: dict[str, LayerAdapter] = {}
    for given, adapter in weights.items():
        name = _own_name(given, layers)
        if name in named:
            raise UserError(f"the adapter has {name} twice, under two names", code="adapter.layer_twice")
        named[name] = adapter
        if name not in layers:
            raise _other_architecture(f"it changes {name} {adapter.shape}, which the base lacks")
        if adapter.shape != (shape := tuple(layers[name].weight.shape)):
            raise _other_architecture(f"{name} is {adapter.shape} in it and {shape} in the base")
    return named


def _other_architecture(difference: str) -> UserError:
    what = f"the adapter is of another architecture: {difference}"
    return UserError(what, code="adapter.other_architecture", remedy="use the base that it was trained on")


def _own_name(name: str, layers: Mapping[str, Layer]) -> str:
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
