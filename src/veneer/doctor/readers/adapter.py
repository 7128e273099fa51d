"""The adapter file of a run, read as evidence: how large its delta W is beside the weights it is added to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.doctor.evidence import WeightChange
from veneer.doctor.readers.base import base_folder

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
    wanted = {f"{prefix}{layer}.weight" for layer in layers for prefix in ("", "text_model.")}
    squares: dict[str, float] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in wanted.intersection(file.keys()):
                    squares[name] = float(file.get_tensor(name).to(torch.float64).square().sum())
    except (OSError, SafetensorError):
        return None
    return math.sqrt(sum(squares.values())) if len(squares) == len(wanted) // 2 else None
