"""What other programs call the layers of full-size bases: golden tables, read in these programs' own code."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["FAMILIES", "GoldenLayer", "comfy_keys", "golden_layers"]

FAMILIES = {"sd15": "sd15", "sdxl": "sdxl", "flux1": "flux-dev"}
"""The published architecture of each table."""
_FILE = Path(__file__).parent / "data" / "keys.json.gz"


@dataclass(frozen=True)
class GoldenLayer:
    """One layer.

    Attributes:
        network: that it is in.
        diffusers: its dotted path in diffusers' files, within the network.
        native: in the model's own code.
        kohya: its name in kohya's files.
        slice: axis, offset and length of the native weight that it is; None: the whole.
    """

    network: str
    diffusers: str
    native: str
    kohya: str
    slice: tuple[int, int, int] | None

    @property
    def path(self) -> str:
        """Its full path in diffusers' files."""
        return f"{self.network}.{self.diffusers}"


@cache
def _tables() -> dict[str, Any]:
    return json.loads(gzip.decompress(_FILE.read_bytes()))  # type: ignore[no-any-return]


@cache
def golden_layers(family: str) -> tuple[GoldenLayer, ...]:
    """Return the layers of a family's base, in all networks that its adapters change."""
    networks = _tables()[family]["layers"].items()
    return tuple(
        GoldenLayer(network, path, native, kohya, None if part is None else tuple(part))
        for network, rows in networks
        for path, native, kohya, part in rows
    )


@cache
def comfy_keys(family: str) -> dict[str, GoldenLayer]:
    """Return the key map of ComfyUI: the layer that it changes for each name in an adapter's file."""
    accepts = _tables()[family]["comfy_accepts"]
    return {name: layer for layer in golden_layers(family) for name in _comfy_names(layer, accepts[layer.network])}


def _comfy_names(layer: GoldenLayer, patterns: list[str]) -> Iterator[str]:
    for pattern in patterns:
        if " " in pattern:  # prose about names of 2023
            continue
        is_whole = layer.slice is None or "{n" not in pattern
        if is_whole:
            yield (
                pattern.replace("{d_}", layer.diffusers.replace(".", "_"))
                .replace("{d}", layer.diffusers)
                .replace("{n_}", layer.native.replace(".", "_"))
                .replace("{n}", layer.native)
            )
