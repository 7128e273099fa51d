"""Read a network's weights from its safetensors files, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

__all__ = ["Shards", "weight_files"]

_STEMS = ("diffusion_pytorch_model", "model")
"""Names of weight files without their endings, as diffusers and transformers write them."""


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a network's folder, one or all that its index lists; empty if there are none.

    Raises:
        OSError, ValueError, KeyError: the index cannot be read.
    """
    for stem in _STEMS:
        index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
        if index.is_file():
            return [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
        if single.is_file():
            return [single]
    return []


class Shards:
    """The tensors of a network's weight files, none of which is read before it is asked for.

    Args:
        files: their paths.

    Attributes:
        shapes: the shape of each tensor by its name.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._shapes = {file: _shapes(file) for file in files}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: shape for shapes in self._shapes.values() for name, shape in shapes.items()
        }

    def dtypes(self) -> set[torch.dtype]:
        """Return the dtypes of the tensors that hold floating-point numbers."""
        return {tensor.dtype for tensor in self.map(self.shapes).values() if tensor.is_floating_point()}

    def map(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors that lie in their files: each page takes memory when something is computed with it."""
        tensors = dict[str, Tensor]()
        for file, wanted in self._by_file(names):
            with _open(file) as opened:
                tensors |= {name: opened.get_tensor(name) for name in wanted}
        return tensors

    def stream(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors with their names, file by file; whoever keeps none holds one at a time.

        A file is opened anew for each: the pages that were read count as this process's while the file is mapped.
        """
        for file, wanted in self._by_file(names):
            for name in wanted:
                with _open(file) as opened:
                    yield name, opened.get_tensor(name)

    def _by_file(self, names: Iterable[str]) -> Iterator[tuple[Path, list[str]]]:
        wanted = set(names)
        for file, shapes in self._shapes.items():
            yield file, [name for name in shapes if name in wanted]


def _open(file: Path) -> Any:
    return safe_open(str(file), framework="pt")


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with _open(file) as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
