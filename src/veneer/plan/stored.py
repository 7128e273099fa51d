"""How a base's weights lie on the disk, which decides what memory they take once they are loaded."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import veneer.base
from veneer.family.registry import BUNDLED

__all__ = ["Stored", "Weights", "stored"]

_PARTS = ("text_encoder", "unet", "vae")
"""In the order in which diffusers loads them, that of their names."""
_LENGTH = 8  # bytes in front of the header of a safetensors file


@dataclass(frozen=True)
class Weights:
    """One part's.

    Attributes:
        count: numbers.
        size: bytes on the disk.
    """

    count: int
    size: int


@dataclass(frozen=True)
class Stored:
    """A base's.

    Attributes:
        parts: in the order in which they are loaded.
        mapped: they are used as they lie in the file, which takes memory only for what is read; else each part is
            copied into float32 while its file is read.
    """

    parts: tuple[Weights, ...]
    mapped: bool

    @property
    def weights(self) -> int:
        """Bytes of all of them in float32."""
        return sum(4 * part.count for part in self.parts)

    @property
    def copied(self) -> int:
        """Bytes that are held once all is loaded and nothing is computed yet."""
        return 0 if self.mapped else self.weights

    @property
    def loading(self) -> int:
        """Bytes that are held at the fullest moment of loading: copies, and the file that is being read."""
        if self.mapped:
            return 0
        copies = [sum(4 * part.count for part in self.parts[: place + 1]) for place in range(len(self.parts))]
        return max((copy + part.size for copy, part in zip(copies, self.parts, strict=True)), default=0)


def stored(base: str, weights: int) -> Stored:
    """How a base's weights are stored, from their files' headers where they are in a folder here.

    Args:
        base: what ``load_family`` takes, or a published architecture.
        weights: bytes of the base in float32, for what is not here: it is taken to be copied.
    """
    place = veneer.base.path() if base == BUNDLED else Path(base).expanduser()
    headers = [[_header(file) for file in sorted((place / part).glob("*.safetensors"))] for part in _PARTS]
    if not all(headers):
        return Stored((Weights(weights // 4, 0),), mapped=False)
    parts = tuple(Weights(sum(map(_count, files)), sum(map(_size, files))) for files in headers)
    dtypes = {tensor["dtype"] for files in headers for file in files for tensor in file.values()}
    return Stored(parts, mapped=dtypes <= {"F32", "I64"})


def _header(file: Path) -> dict[str, Any]:
    """The tensors of a safetensors file by name."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH), "little")
        header: dict[str, Any] = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return header


def _count(header: dict[str, Any]) -> int:
    return sum(math.prod(tensor["shape"]) for tensor in header.values())


def _size(header: dict[str, Any]) -> int:
    return max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
