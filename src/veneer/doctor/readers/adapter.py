"""The adapter file of a run, read as evidence: how large its delta W is beside the weights it is added to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.doctor.evidence import WeightChange
from veneer.doctor.readers.base import base_folder
from veneer.family.shards import Shards, weight_files

__all__ = ["weight_changes"]


def weight_changes(weights: AdapterWeights, base: str) -> dict[str, WeightChange]:
    """Return |delta W| beside |W0| by network; |W0| is read from the base's files where the base is a folder.

    Networks are left out whose adapter has no size without the base's weights, where these are not at hand.
    """
    networks: dict[str, dict[str, LayerAdapter]] = {}
    for name, layer in weights.items():
        network, _, path = name.partition(".")
        networks.setdefault(network, {})[path] = layer
    changes = {network: _weight_change(layers, base_folder(base) / network) for network, layers in networks.items()}
    return {network: change for network, change in changes.items() if change is not None}


def _weight_change(layers: Mapping[str, LayerAdapter], folder: Path) -> WeightChange | None:
    squares = _squared_norms(layers, folder)
    if squares is not None:
        delta, base = (math.sqrt(sum(squares[path][part] for path in layers)) for part in (0, 1))
        return WeightChange(len(layers), delta, base)
    if not all(layer.method.is_additive for layer in layers.values()):
        return None
    return WeightChange(len(layers), math.sqrt(sum(layer.squared_norm() for layer in layers.values())), None)


def _squared_norms(layers: Mapping[str, LayerAdapter], folder: Path) -> dict[str, tuple[float, float]] | None:
    """Return |delta W|^2 and |W0|^2 of each layer; None where the files lack a layer or cannot be read."""
    try:
        shards = Shards(weight_files(folder))
        names = _stored_names(shards.shapes)
        paths = {names[f"{path}.weight"]: path for path in layers}
        return {paths[name]: _squares(layers[paths[name]], weight) for name, weight in shards.stream(paths)}
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError):  # RuntimeError: a layer of another size
        return None


def _squares(layer: LayerAdapter, weight: Tensor) -> tuple[float, float]:
    return layer.squared_norm(weight.reshape(layer.shape)), float(weight.double().square().sum())


def _stored_names(stored: Iterable[str]) -> dict[str, str]:
    """Return names in files by names in a network: files may have one more component in front of all names."""
    names = list(stored)
    return {name.partition(".")[2]: name for name in names} | {name: name for name in names}
