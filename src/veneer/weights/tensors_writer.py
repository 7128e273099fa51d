"""Write a safetensors file tensor by tensor: memory holds one at a time, however large the file is."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from veneer.errors import UserError
from veneer.files import name_beside
from veneer.weights.header import ITEM_BYTES, Header
from veneer.weights.safetensors import DTYPES

__all__ = ["TensorSpec", "TensorsWriter", "check_space", "file_bytes", "new_tensors_file"]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PIECE = 2**24  # bytes that are copied at a time
_MARGIN = 2**20  # bytes that are left free on a disk


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a file that is to be written.

    Attributes:
        dtype: by the format's name.
        shape: of the tensor.
    """

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, dtype: torch.dtype, shape: tuple[int, ...]) -> TensorSpec:
        """Return the tensor of a dtype of torch."""
        return cls(_NAMES[dtype], shape)

    @property
    def nbytes(self) -> int:
        """Bytes that its numbers take."""
        count = 1
        for size in self.shape:
            count *= size
        return count * ITEM_BYTES[self.dtype]


class TensorsWriter:
    """An open safetensors file, whose header is written and whose tensors are written in any order.

    Args:
        file: to write into.
        specs: of the tensors.
        metadata: texts by key.

    Attributes:
        header: what the file will hold.
    """

    def __init__(self, file: IO[bytes], specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> None:
        self._file, self._specs = file, specs
        self._starts = _starts(specs)
        text = _header_text(specs, metadata)
        self._data_start = 8 + len(text)
        file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, which is of the dtype and shape that were announced."""
        spec = TensorSpec.of(tensor.dtype, tuple(tensor.shape))
        assert spec == self._specs[name], f"{name} is {spec}, not {self._specs[name]}"
        self._seek(name)
        data: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        self._file.write(memoryview(data))

    def copy(self, name: str, source: Path, data_start: int, header: Header) -> None:
        """Copy a tensor's bytes out of another file.

        Args:
            name: in both files.
            source: the other file.
            data_start: where its first tensor begins.
            header: its own.

        Raises:
            OSError: it cannot be read, or became shorter.
        """
        entry = header.tensors[name]
        self._seek(name)
        with source.open("rb") as opened:
            opened.seek(data_start + entry.start)
            left = entry.end - entry.start
            while left:
                if not (piece := opened.read(min(_PIECE, left))):
                    raise OSError(errno.EIO, f"{source} became shorter while it was read")
                self._file.write(piece)
                left -= len(piece)

    def _seek(self, name: str) -> None:
        self._file.seek(self._data_start + self._starts[name])


def _in_order(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Return the names in the order of their bytes: wide numbers first, so that each lies at a multiple of its size."""
    return sorted(specs, key=lambda name: -ITEM_BYTES[specs[name].dtype])


def _starts(specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Return each tensor's first byte, counted from the first one's."""
    starts, end = dict[str, int](), 0
    for name in _in_order(specs):
        starts[name] = end
        end += specs[name].nbytes
    return starts


def _header_text(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Return a header's JSON, padded to a multiple of 8 bytes; the text depends on the content alone."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for name, start in _starts(specs).items():
        spec = specs[name]
        offsets = [start, start + spec.nbytes]
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def file_bytes(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> int:
    """Return how many bytes a file of these tensors has."""
    return 8 + len(_header_text(specs, metadata)) + sum(spec.nbytes for spec in specs.values())


def check_space(place: Path, needed: int) -> None:
    """Check that a disk has room for what is to be written.

    Args:
        place: of the new file or folder.
        needed: bytes.

    Raises:
        UserError: it has not.
    """
    folder = next(parent for parent in place.absolute().parents if parent.is_dir())
    if (free := shutil.disk_usage(folder).free) < needed + _MARGIN:
        what = f"needs {needed / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are free there"
        raise UserError(what, code="output.no_space", where=place, remedy="make room, or choose another --out")


@contextmanager
def new_tensors_file(
    path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
) -> Iterator[TensorsWriter]:
    """Yield the writer of a file, which takes its name only when all of it is on the disk; else nothing of it is left.

    Raises:
        UserError: it cannot be written, for want of room for example.
    """
    beside = name_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("wb") as file:
                yield TensorsWriter(file, specs, metadata)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise UserError(what, code="files.unwritable", where=path) from error
