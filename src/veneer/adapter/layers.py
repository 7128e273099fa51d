"""Which layers a network has that an adapter may change, and which of an adapter's names means which."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import AdapterWeights
from veneer.errors import UserError

__all__ = ["Layer", "fit", "layers_of", "layers_under", "nearest"]

Layer: TypeAlias = "nn.Linear | nn.Conv2d"
_CLIP = "text_model."
"""CLIP text encoders name their layers with or without it, by class and by version of transformers."""


def layers_under(network: nn.Module, path: str = "") -> Iterator[tuple[str, Layer]]:
    """The linear layers and convolutions by dotted path; an adapter injected around one is looked through."""
    for name, child in network.named_children():
        inner = child.get_base_layer() if isinstance(child, BaseTunerLayer) else child
        if isinstance(inner, nn.Linear | nn.Conv2d):
            yield path + name, inner
        yield from layers_under(inner, f"{path}{name}.")


def layers_of(networks: Mapping[str, nn.Module]) -> dict[str, Layer]:
    """The same for several networks, by path with the network's prefix: ``unet.conv_in``."""
    return {f"{prefix}.{path}": layer for prefix, net in networks.items() for path, layer in layers_under(net)}


def fit(factors: AdapterWeights, layers: Mapping[str, Layer]) -> dict[str, LoraFactors]:
    """The factors by the names that these networks use, once each is known to fit its layer.

    Raises:
        UserError: the adapter is of another architecture; the first layer that differs is named.
    """
    named: dict[str, LoraFactors] = {}
    for given, each in factors.items():
        name = _own_name(given, layers)
        if name in named:
            raise UserError(f"the adapter has {name} twice, under two names")
        named[name] = each
        if name not in layers:
            raise _foreign(f"it changes {name} {each.shape}, which the base lacks")
        if each.shape != tuple(layers[name].weight.shape):
            raise _foreign(f"{name} is {each.shape} in it and {tuple(layers[name].weight.shape)} in the base")
    return named


def _foreign(difference: str) -> UserError:
    return UserError(
        f"the adapter is of another architecture: {difference}", remedy="use the base that it was trained on"
    )


def _own_name(name: str, layers: Mapping[str, Layer]) -> str:
    prefix, _, path = name.partition(".")
    other = f"{prefix}.{path.removeprefix(_CLIP) if path.startswith(_CLIP) else _CLIP + path}"
    return other if name not in layers and other in layers else name


def nearest(target: str, paths: list[str]) -> list[str]:
    """What a mistyped target may have meant: up to three endings of the paths, or else the last names there are."""
    depth = target.count(".") + 1
    endings = {".".join(parts[-depth:]) for parts in (path.split(".") for path in paths)}
    leaves = {_leaf(path) for path in paths}
    return difflib.get_close_matches(target, sorted(endings | leaves), n=3, cutoff=0.4) or sorted(leaves)


def _leaf(path: str) -> str:
    """The last name, with the one before it where the last is a number: ``to_out.0``."""
    parts = path.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])
