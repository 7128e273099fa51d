"""The adapter file of a run, read as evidence: how large its delta W is beside the weights it is added to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError

from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.doctor.evidence import WeightChange
from veneer.doctor.readers.base import base_folder
from veneer.family.shards import Shards, weight_files

__all__ = ["weight_changes"]


def weight_changes(weights: AdapterWeights, base: str) -> dict[str, WeightChange]:
    """Return |delta W| beside |W0| by network; |W0| is read from the base's files where the base is a folder."""
    networks: dict[str, dict[str, LayerAdapter]] = {}
    for name, layer in weights.items():
        network, _, path = name.partition(".")
        networks.setdefault(network, {})[path] = layer
    return {network: _weight_change(layers, base_folder(base) / network) for network, layers in networks.items()}


def _weight_change(layers: Mapping[str, LayerAdapter], folder: Path) -> WeightChange:
    delta = math.sqrt(sum(layer.squared_norm() for layer in layers.values()))
    return WeightChange(len(layers), delta, _base_norm(list(layers), folder))


def _base_norm(layers: Iterable[str], folder: Path) -> float | None:
    """Return |W0| over layers; None where the files lack one of them or cannot be read."""
    try:
        shards = Shards(weight_files(folder))
        names = _stored_names(shards.shapes)
        wanted = [names.get(f"{layer}.weight") for layer in layers]
        stored = [name for name in wanted if name is not None]
        squares = [float(tensor.to(torch.float64).square().sum()) for _, tensor in shards.stream(stored)]
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    return math.sqrt(sum(squares)) if len(squares) == len(wanted) else None


def _stored_names(stored: Iterable[str]) -> dict[str, str]:
    """Return names in files by names in a network: files may have one more component in front of all names."""
    names = list(stored)
    return {name.partition(".")[2]: name for name in names} | {name: name for name in names}
