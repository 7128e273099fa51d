"""A safetensors file opened for reading: its header is known to fit its size before any number of it is read.

Numbers are read one tensor at a time, as numpy's arrays; nothing here needs torch.
"""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import psutil

from veneer.errors import UserError
from veneer.file_kind import EMPTY, MOST_HEADER_BYTES, SAFETENSORS, kind_in
from veneer.files import is_pickle, open_regular
from veneer.weights.header import Header, RawHeader, bad_header, parse_header, parse_raw_header, shown
from veneer.weights.numbers import FLOATS, Numbers, decode_numbers
from veneer.weights.other_files import other_kind, pickle_ending

__all__ = ["RawFile", "TensorsFile", "check_floating", "not_finite", "open_raw", "open_tensors", "readable"]

_START_BYTES = 200  # of a file, for messages
_SMALLEST = 10  # bytes of a safetensors file: the length, and the header {}
_LARGE = 2**26  # bytes of a tensor for which memory is looked at; that takes as long as reading a small one
_TIMES = 5  # memory that numbers take while they are read, as a multiple of a tensor's bytes: of 8 bits, float32 beside


@dataclass(frozen=True)
class TensorsFile:
    """An open safetensors file whose header makes sense and fits the file's size; no number is read yet.

    Attributes:
        path: of the file.
        header: what it holds.
        data_start: the byte at which the numbers begin.
    """

    path: Path
    header: Header
    data_start: int
    _file: io.BufferedReader
    _lock: Lock = field(default_factory=Lock)

    def read_into(self, name: str, buffer: Any) -> None:
        """Read the bytes of a tensor; several threads may.

        Args:
            name: of the tensor.
            buffer: takes them, of exactly their number.

        Raises:
            UserError: the file changed, or cannot be read any more.
        """
        with readable(self.path), self._lock:
            self._file.seek(self.data_start + self.header.tensors[name].start)
            if self._file.readinto(buffer) != len(buffer):
                raise OSError(errno.EIO, "it became shorter while it was read")

    def numbers(self, name: str) -> Numbers:
        """Read a tensor's numbers, of its shape, in memory of their own and of the types of :func:`decode_numbers`.

        Raises:
            UserError: the file changed, cannot be read any more, or memory is too small.
        """
        entry = self.header.tensors[name]
        size = entry.end - entry.start
        if size > _LARGE:
            self.check_memory(_TIMES * size)
        data = np.empty(size, np.uint8)
        self.read_into(name, data)
        return decode_numbers(data, entry.dtype).reshape(entry.shape)

    def check_memory(self, needed: int) -> None:
        """Refuse to read what memory has no room for.

        Args:
            needed: bytes that are to be taken.

        Raises:
            UserError: fewer are free.
        """
        free = psutil.virtual_memory().available
        if needed > free:
            size, room = self.header.data_bytes / 1e9, free / 1e9
            what = f"holds {size:,.1f} GB of tensors, and {room:,.1f} GB of memory are free"
            remedy = "it may be a whole model rather than an adapter"
            raise UserError(what, code="weights.too_large", where=self.path, remedy=remedy)


@dataclass(frozen=True)
class RawFile:
    """An open safetensors file as bytes: whatever its tensors are, they are not looked at.

    Attributes:
        path: of the file.
        header: what it says.
        data_start: the byte at which the numbers begin.
    """

    path: Path
    header: RawHeader
    data_start: int
    _file: io.BufferedReader

    def data(self) -> Iterator[bytes]:
        """Yield the bytes behind the header, piece by piece.

        Raises:
            UserError: the file changed, or cannot be read any more.
        """
        with readable(self.path):
            self._file.seek(self.data_start)
            left = self.header.data_bytes
            while left:
                piece = self._file.read(min(_LARGE, left))
                if not piece:
                    raise OSError(errno.EIO, "it became shorter while it was read")
                left -= len(piece)
                yield piece


@contextmanager
def open_raw(path: Path) -> Iterator[RawFile]:
    """Open a safetensors file whose tensors may be of types that are not read.

    Raises:
        UserError: as of :func:`open_tensors`, but for the tensors' types and sizes.
    """
    with _opened(path) as (file, text, size):
        header = parse_raw_header(text, path)
        _check_size(size - 8 - len(text), header.data_bytes, path)
        yield RawFile(path, header, 8 + len(text), file)


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorsFile]:
    """Open a safetensors file and check its header against its size.

    Raises:
        UserError: it is a pickle (which is not opened, for opening one can run code), is no regular file, is another
            kind of file, is cut short or too long, or its header does not make sense.
    """
    with _opened(path) as (file, text, size):
        header = parse_header(text, path)
        _refuse_empty(header, path)
        _check_size(size - 8 - len(text), header.data_bytes, path)
        yield TensorsFile(path, header, 8 + len(text), file)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedReader, bytes, int]]:
    """Yield a file, the JSON of its header and how many bytes it has, once it is known to be a safetensors file."""
    if is_pickle(path):
        raise pickle_ending(path)
    with readable(path):
        file = open_regular(path)
    with file:
        with readable(path):
            size = os.fstat(file.fileno()).st_size
            length = _header_length(file, size, path)
            file.seek(8)
            text = file.read(length)
        yield file, text, size


def check_floating(header: Header, names: Iterable[str], path: Path) -> None:
    """Refuse tensors that are not of floating point numbers.

    An alpha may be an integer: kohya's trainer keeps the number as the user gave it, whose default is 1. So is what
    LyCORIS tells by 0 or 1.

    Args:
        header: of the file.
        names: of the tensors.
        path: of the file, for the message.

    Raises:
        UserError: the first that is not.
    """
    for name in names:
        entry = header.tensors[name]
        if entry.dtype in FLOATS or (math.prod(entry.shape) == 1 and _may_be(entry.dtype, name)):
            continue
        what = f"tensor {shown(name)} is of {entry.dtype}, which is no floating point type"
        remedy = "ask its maker for float16, bfloat16 or float32"
        raise UserError(what, code="weights.not_floating", where=path, remedy=remedy)


def not_finite(name: str, path: Path) -> UserError:
    """Return the error for a tensor that holds NaN or infinity."""
    what = f"tensor {shown(name)} holds NaN or infinity"
    remedy = "use an earlier checkpoint, or ask its maker"
    return UserError(what, code="weights.not_finite", where=path, remedy=remedy)


def _may_be(dtype: str, name: str) -> bool:
    """Return whether a tensor is one number that an adapter is told by, such as its strength, or a truth."""
    return name.endswith(".scaled_oft") if dtype == "BOOL" else name.endswith((".alpha", ".lora_alpha", ".on_input"))


def _refuse_empty(header: Header, path: Path) -> None:
    """Refuse a tensor without numbers: its shape may be of any size, such as a rank of 2^40.

    A base may have one, whose name alone says something.
    """
    for name, entry in header.tensors.items():
        if entry.start == entry.end:
            what = f"tensor {shown(name)} is of shape {entry.shape!s:.80} and holds no number"
            raise bad_header(what, path)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in one line why a file cannot be read."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or error
        remedy = _REMEDIES.get(getattr(error, "errno", 0) or 0, "name the file itself")
        raise UserError(f"cannot be read: {reason}", code="weights.unreadable", where=path, remedy=remedy) from error


_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EACCES: "ask its owner for the right to read it",
    errno.EPERM: "ask its owner for the right to read it",
    errno.EIO: "the disk may be failing; try again, or use a copy",
}


def _header_length(file: io.BufferedReader, size: int, path: Path) -> int:
    """Return the length of a file's header, once its first bytes are known to be those of a safetensors file."""
    kind = kind_in(file)
    file.seek(0)
    start = file.read(_START_BYTES)
    length = int.from_bytes(start[:8], "little")
    if kind is SAFETENSORS:
        if length > size - 8:
            raise _cut_short(f"its header has {size - 8:,} of {length:,} bytes", path)
        return length
    if kind is not None and size > 1:  # one byte may be a letter
        raise other_kind(kind, path, start)
    if length > MOST_HEADER_BYTES and start[8:9] == b"{":
        what = f"its header would have {length:,} bytes, and safetensors allows {MOST_HEADER_BYTES:,}"
        raise bad_header(what, path)
    if size < _SMALLEST or (length > size - 8 and length <= MOST_HEADER_BYTES):
        raise _cut_short("it is empty" if kind is EMPTY else f"it has {size:,} bytes", path)
    what = f"is no safetensors file: it begins with the bytes {start[:8].hex(' ')}"
    raise UserError(what, code="weights.not_safetensors", where=path, remedy="name another file, or fetch it again")


def _check_size(found: int, expected: int, path: Path) -> None:
    if found < expected:
        raise _cut_short(f"its tensors have {found:,} of {expected:,} bytes", path)
    if found > expected:
        raise bad_header(f"has {found - expected:,} bytes behind its last tensor", path)


def _cut_short(what: str, path: Path) -> UserError:
    return UserError(f"is cut short: {what}", code="weights.cut_short", where=path, remedy="fetch it again")
