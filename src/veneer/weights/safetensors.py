"""Safetensors whose bytes depend on their content alone, read without running anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from veneer.errors import UserError
from veneer.files import is_pickle

__all__ = ["check_finite", "decode", "encode", "encoded_bytes", "first_not_finite"]

_PICKLE_STARTS = (b"PK\x03\x04", *(bytes((0x80, protocol)) for protocol in range(1, 6)))
"""torch.save writes a zip; before 1.6, and pickle itself, a protocol mark."""

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

    The file is read, not mapped: what is in memory stays when the file is written over.

    Raises:
        UserError: it is a pickle (which is not opened, for opening one can run code), is cut short, or holds what
            :func:`check_finite` refuses.
    """
    if is_pickle(path):
        raise _pickle_error(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise UserError(what, code="weights.unreadable", where=path) from error
    tensors = {name: _wide(tensor) for name, tensor in _tensors(content, path).items()}
    check_finite(tensors, path)
    return tensors, _header(content).get("__metadata__") or {}


def _tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return from_safetensors(content)
    except SafetensorError as error:
        # only now: the length of a sound header may have a pickle's first bytes
        if content.startswith(_PICKLE_STARTS):
            raise _pickle_error(path) from None
        reason = f"is cut short or is no safetensors file ({error})"
        raise UserError(reason, code="weights.cut_short", where=path, remedy="fetch it again") from error
    except KeyError as error:  # a type of the format that torch has no like of
        what = f"holds numbers of type {error.args[0]}"
        remedy = "ask its maker for float16, bfloat16 or float32"
        raise UserError(what, code="weights.unsupported_dtype", where=path, remedy=remedy) from error


def _wide(tensor: Tensor) -> Tensor:
    """Return floats of 8 bits, which torch cannot compute with, in float32, which has each of them."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _header_bytes(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _header(content: bytes) -> dict[str, Any]:
    """Return the header of a file that the library has read, so it is sound: 8 bytes of its length, and JSON."""
    header: dict[str, Any] = json.loads(content[8 : _data_start(content)])
    return header


def _data_start(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def _pickle_error(path: Path) -> UserError:
    reason = "is a pickle, which can run any code when it is opened, so it was not"
    return UserError(reason, code="weights.pickle", where=path, remedy="ask its maker for a .safetensors file")


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
        if _is_whole(tensor) and name.endswith(".alpha"):
            continue
        if not tensor.is_floating_point():
            what = f"tensor {name} is {tensor.dtype}, not a floating point one"
            raise UserError(what, code="weights.not_floating", where=path)
        if not torch.isfinite(tensor).all():
            what = f"tensor {name} holds NaN or infinity"
            raise UserError(what, code="weights.not_finite", where=path, remedy="use an earlier checkpoint")


def _is_whole(tensor: Tensor) -> bool:
    return tensor.numel() == 1 and tensor.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
