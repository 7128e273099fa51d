"""The files of a base's weights, whose form decides what memory the weights take once they are loaded."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from veneer.family.file_content import header
from veneer.family.registry import detect, family_class, place_of
from veneer.family.shards import weight_files
from veneer.weights.header import Header

__all__ = ["PartFiles", "WeightFiles", "read_weight_files"]


@dataclass(frozen=True)
class PartFiles:
    """The files of one part of a base.

    Attributes:
        count: number of parameters.
        size: bytes on disk.
    """

    count: int
    size: int


@dataclass(frozen=True)
class WeightFiles:
    """The files of all parts of a base.

    Attributes:
        parts: in the order in which they are loaded.
        mapped: the weights are used as they lie in the file, which takes memory only for what is read; else each part
            is copied into float32 while its file is read.
    """

    parts: tuple[PartFiles, ...]
    mapped: bool

    @property
    def float32_bytes(self) -> int:
        """Bytes of all weights in float32."""
        return sum(4 * part.count for part in self.parts)

    @property
    def copied_bytes(self) -> int:
        """Bytes that are held once all is loaded and nothing is computed yet."""
        return 0 if self.mapped else self.float32_bytes

    @property
    def loading_bytes(self) -> int:
        """Bytes that are held at the fullest moment of loading: copies, and the file that is being read."""
        if self.mapped:
            return 0
        copies = [sum(4 * part.count for part in self.parts[: place + 1]) for place in range(len(self.parts))]
        return max((copy + part.size for copy, part in zip(copies, self.parts, strict=True)), default=0)


def read_weight_files(base: str, weight_bytes: int, unread: Collection[str] = ()) -> WeightFiles:
    """Return the files of a base's weights, from their headers if they are in a folder on this machine.

    Args:
        base: what ``load_family`` takes, or a published architecture.
        weight_bytes: bytes of what is loaded of it, for one that is not here; its weights count as copied.
        unread: names of networks that are not loaded with the rest.
    """
    folder = place_of(base) or Path(base)
    headers = [[header(file) for file in files] for files in _files(folder, unread)]
    if not headers:
        return WeightFiles((PartFiles(weight_bytes // 4, 0),), mapped=False)
    parts = tuple(PartFiles(sum(map(_count, files)), sum(map(_size, files))) for files in headers)
    dtypes = {tensor.dtype for files in headers for file in files for tensor in file.tensors.values()}
    return WeightFiles(parts, mapped=dtypes <= {"F32", "I64"})


def _files(folder: Path, unread: Collection[str]) -> list[list[Path]]:
    """Return the weight files of each of a base's networks; empty if it is no folder on this machine."""
    if not folder.is_dir():
        return []
    names = [name for name in family_class(detect(folder)).config_names() if name not in unread]
    of_parts = [weight_files(folder / name) for name in names]
    found = [files for files in of_parts if files]  # a scheduler has none
    # what is of PyTorch's format has no header to read, and is copied like a base that is not here
    return found if all(file.suffix == ".safetensors" for files in found for file in files) else []


def _count(read: Header) -> int:
    return sum(math.prod(tensor.shape) for tensor in read.tensors.values())


def _size(read: Header) -> int:
    return read.data_bytes
