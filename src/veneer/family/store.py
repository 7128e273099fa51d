"""What a base made of pictures and captions, kept on disk for later runs and keyed on what it was made from.

A key is a hash of everything that the numbers depend on: the base's weights and settings, the machine's kind, the
picture's bytes, the square that was cut, the caption. So nothing in a store is ever stale, runs of any kind may share
one, and it can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from veneer.files import atomic_write

__all__ = ["Store"]

Tensors = dict[str, Tensor]
_FORM = 1
"""Part of every key: raise it when the same inputs begin to give other numbers."""


class Store:
    """A folder of tensors, one small safetensors file a key.

    Args:
        folder: made when the first tensors are kept.
        base: what all keys have in common: what its numbers depend on, as one text.
    """

    def __init__(self, folder: Path, base: str) -> None:
        self._folder, self._base = folder, base

    def kept(self, what: tuple[object, ...], make: Callable[[], Tensors]) -> Tensors:
        """The tensors kept under a key, or those that ``make`` makes, which are then kept.

        A file that is torn or is no safetensors file counts as absent and is written anew.

        Args:
            what: all that the tensors depend on beside the base; of JSON's types.
            make: is called where nothing is kept yet.

        Raises:
            UserError: the folder cannot be written to.
        """
        path = self._path(what)
        found = _read(path)
        if found is None:
            found = {name: tensor.contiguous() for name, tensor in make().items()}
            atomic_write(path, save(found))
        return found

    def _path(self, what: tuple[object, ...]) -> Path:
        digest = hashlib.sha256(json.dumps([_FORM, self._base, *what]).encode()).hexdigest()
        return self._folder / digest[:2] / f"{digest[2:]}.safetensors"


def _read(path: Path) -> Tensors | None:
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError):
        return None
