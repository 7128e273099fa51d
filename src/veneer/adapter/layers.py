"""Layers that an adapter may change: which a network has, and which of them an adapter's names mean."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from veneer.adapter.protocol import AdapterWeights, Layer, LayerAdapter
from veneer.errors import UserError

__all__ = ["fit_to_layers", "layers_of", "layers_under", "nearest"]

_OPTIONAL_LEVEL = "text_model."
"""A level of text encoders' layer names that is there or not, by class and by version of transformers."""


def layers_under(network: nn.Module, path: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield the linear layers and convolutions by dotted path; an adapter injected around one is looked through."""
    for name, child in network.named_children():
        inner = child.get_base_layer() if isinstance(child, BaseTunerLayer) else child
        if isinstance(inner, nn.Linear | nn.Conv2d):
            yield path + name, inner
        yield from layers_under(inner, f"{path}{name}.")


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
