"""Safetensors whose bytes depend on their content alone, read without running anything."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from veneer.errors import UserError
from veneer.file_kind import EMPTY, MOST_HEADER_BYTES, SAFETENSORS, kind_in
from veneer.files import is_pickle, open_regular
from veneer.weights.header import Header, TensorEntry, bad_header, parse_header, shown
from veneer.weights.other_files import other_kind, pickle_ending

__all__ = ["TensorsFile", "check_finite", "decode", "encode", "encoded_bytes", "first_not_finite", "open_tensors"]

_START_BYTES = 200  # of a file, for messages
_SMALLEST = 10  # bytes of a safetensors file: the length, and the header {}

_DTYPE_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
_DTYPES = tuple(_DTYPE_NAMES)


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file of at least one tensor; they depend on its content alone.

    The library writes the metadata in another order each time; here the header's JSON is sorted. The data that its
    offsets point into stays as it is.
    """
    # copies, for the library refuses tensors that share memory
    own = {name: tensors[name].detach().clone(memory_format=torch.contiguous_format) for name in sorted(tensors)}
    whole = to_safetensors(own, dict(metadata))
    header = _header_bytes(_header(whole))
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + whole[_data_start(whole) :]


def encoded_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Return how many bytes :func:`encode` makes; the tensors' numbers are not looked at, so they need have none."""
    # the library lays the widest types first, and names of one type in their order
    ordered = sorted(sorted(tensors), key=lambda name: _DTYPES.index(tensors[name].dtype))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in ordered:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        dtype = _DTYPE_NAMES[tensors[name].dtype]
        header[name] = {"data_offsets": [start, end], "dtype": dtype, "shape": list(tensors[name].shape)}
    return 8 + -(-len(_header_bytes(header)) // 8) * 8 + end


def decode(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Raises:
        UserError: as of :func:`open_tensors`, or it holds what :func:`check_finite` refuses.
    """
    with open_tensors(path) as file:
        return file.tensors(), dict(file.header.metadata)


@dataclass(frozen=True)
class TensorsFile:
    """An open safetensors file whose header makes sense and fits the file's size; no number is read yet.

    Attributes:
        path: of the file.
        header: what it holds.
    """

    path: Path
    header: Header
    _file: io.BufferedReader
    _data_start: int

    def tensors(self) -> dict[str, Tensor]:
        """Read all tensors, each into memory of its own: it stays when the file is written over.

        Raises:
            UserError: memory is too small, the file changed, or a tensor is none that :func:`check_finite` takes.
        """
        self._check_memory()
        with _readable(self.path):
            tensors = {name: _wide(self._tensor(entry)) for name, entry in self.header.tensors.items()}
        check_finite(tensors, self.path)
        return tensors

    def _check_memory(self) -> None:
        free = psutil.virtual_memory().available
        if self.header.data_bytes > free:
            what = (
                f"holds {self.header.data_bytes / 1e9:,.1f} GB of tensors, and {free / 1e9:,.1f} GB of memory are free"
            )
            remedy = "it may be a whole model rather than an adapter"
            raise UserError(what, code="weights.too_large", where=self.path, remedy=remedy)

    def _tensor(self, entry: TensorEntry) -> Tensor:
        data = torch.empty(entry.end - entry.start, dtype=torch.uint8)
        self._file.seek(self._data_start + entry.start)
        buffer: Any = data.numpy()
        if self._file.readinto(buffer) != len(data):
            raise OSError(errno.EIO, "it became shorter while it was read")
        return data.view(entry.dtype).reshape(entry.shape)


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorsFile]:
    """Open a safetensors file and check its header against its size.

    Raises:
        UserError: it is a pickle (which is not opened, for opening one can run code), is no regular file, is another
            kind of file, is cut short or too long, or its header does not make sense.
    """
    if is_pickle(path):
        raise pickle_ending(path)
    with _readable(path):
        file = open_regular(path)
    with file:
        with _readable(path):
            size = os.fstat(file.fileno()).st_size
            length = _header_length(file, size, path)
            file.seek(8)
            header = parse_header(file.read(length), path)
        _refuse_empty(header, path)
        _check_size(size - 8 - length, header.data_bytes, path)
        yield TensorsFile(path, header, file, 8 + length)


def _refuse_empty(header: Header, path: Path) -> None:
    """Refuse a tensor without numbers: its shape may be of any size, such as a rank of 2^40.

    A base may have one, whose name alone says something.
    """
    for name, entry in header.tensors.items():
        if entry.start == entry.end:
            what = f"tensor {shown(name)} is of shape {entry.shape!s:.80} and holds no number"
            raise bad_header(what, path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
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


def _wide(tensor: Tensor) -> Tensor:
    """Return floats of 8 bits, which torch cannot compute with, in float32, which has each of them."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _header_bytes(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _header(content: bytes) -> dict[str, Any]:
    """Return the header of a file that the library has written, so it is sound: 8 bytes of its length, and JSON."""
    header: dict[str, Any] = json.loads(content[8 : _data_start(content)])
    return header


def _data_start(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity; None if none does."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not numbers to compute with.

    An alpha may be an integer: kohya's trainer keeps the number as the user gave it, whose default is 1.

    Raises:
        UserError: the first that holds NaN or infinity, or is of integers.
    """
    for name, tensor in tensors.items():
        if _is_whole(tensor) and name.endswith((".alpha", ".lora_alpha")):
            continue
        if not tensor.is_floating_point():
            what = f"tensor {name} is {tensor.dtype}, not a floating point one"
            remedy = "ask its maker for float16, bfloat16 or float32"
            raise UserError(what, code="weights.not_floating", where=path, remedy=remedy)
        if not torch.isfinite(tensor).all():
            what = f"tensor {name} holds NaN or infinity"
            raise UserError(
                what, code="weights.not_finite", where=path, remedy="use an earlier checkpoint, or ask its maker"
            )


def _is_whole(tensor: Tensor) -> bool:
    return tensor.numel() == 1 and tensor.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
