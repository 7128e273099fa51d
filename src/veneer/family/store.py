"""Store on disk what a base made of pictures and captions, for later runs, keyed by what it was made from.

A key is a hash of everything that the numbers depend on: the base's weights and settings, the machine's kind, the
picture's bytes and the version of the decoding, the square that was cut, the caption. So nothing in a store is ever
stale, runs of any kind may share one, and it can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from veneer.errors import UserError
from veneer.files import atomic_write

__all__ = ["Store"]

Tensors: TypeAlias = dict[str, Tensor]
_VERSION = 1
"""Part of every key: raise it when the same inputs begin to give other numbers."""


class Store:
    """A folder of tensors, with one small safetensors file for each key.

    Args:
        folder: the folder; made when the first tensors are stored.
        base: what all keys have in common: what the base's numbers depend on, as one text.

    Attributes:
        fault: why nothing more is stored: the disk is full, or the folder cannot be written to; None: all is.
    """

    def __init__(self, folder: Path, base: str) -> None:
        self._folder, self._base = folder, base
        self.fault: UserError | None = None

    def get_or_compute(self, key: tuple[object, ...], compute: Callable[[], Tensors]) -> Tensors:
        """Return the tensors that are stored under a key; compute and store them if there are none.

        A file that is torn or is no safetensors file counts as absent and is written anew.

        Args:
            key: all that the tensors depend on beside the base; of JSON's types.
            compute: computes the tensors.
        """
        path = self._path(key)
        tensors = _read(path)
        if tensors is None:
            tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
            self._write(path, tensors)
        return tensors

    def _write(self, path: Path, tensors: Tensors) -> None:
        """Write a file, unless an earlier one could not be: a store saves time, and no run has to end without it."""
        if self.fault is None:
            try:
                atomic_write(path, save(tensors))
            except UserError as fault:
                self.fault = fault

    def _path(self, key: tuple[object, ...]) -> Path:
        digest = hashlib.sha256(json.dumps([_VERSION, self._base, *key]).encode()).hexdigest()
        return self._folder / digest[:2] / f"{digest[2:]}.safetensors"


def _read(path: Path) -> Tensors | None:
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError):
        return None
