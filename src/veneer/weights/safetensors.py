"""Safetensors whose bytes depend on their content alone, as torch's tensors, read without running anything."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from veneer.weights.tensors_file import TensorsFile, check_floating, not_finite, open_tensors

__all__ = [
    "DTYPES",
    "check_finite",
    "decode",
    "dtype_name",
    "encode",
    "encoded_bytes",
    "encoded_header",
    "encoded_pieces",
    "first_not_finite",
    "in_file_order",
    "open_tensors",
    "read_tensor",
    "read_tensors",
]

_WRITTEN = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
"""The types that are written, by the format's names, in the order in which the library lays them."""
DTYPES = {
    **{name: dtype for dtype, name in _WRITTEN.items()},
    **{"I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool},
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
"""The types that are read; the names are those of ``header.ITEM_BYTES``."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name as users write it: ``float16``."""
    return str(dtype).removeprefix("torch.")


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file of at least one tensor; they depend on its content alone.

    The library writes the metadata in another order each time; here the header's JSON is sorted. The data that its
    offsets point into stays as it is.
    """
    # copies, for the library refuses tensors that share memory
    own = {name: tensors[name].detach().clone(memory_format=torch.contiguous_format) for name in sorted(tensors)}
    whole = to_safetensors(own, dict(metadata))
    return _padded(_header_bytes(_header(whole))) + whole[_data_start(whole) :]


def encoded_pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yield the bytes that :func:`encode` makes, header first, then each tensor's; none is held beside the tensors."""
    yield encoded_header(tensors, metadata)
    for name in in_file_order(tensors):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        content: Any = flat.view(torch.uint8).numpy()
        yield memoryview(content)


def encoded_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Return how many bytes :func:`encode` makes; the tensors' numbers are not looked at, so they need have none."""
    return len(encoded_header(tensors, metadata)) + sum(each.numel() * each.element_size() for each in tensors.values())


def encoded_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes before the data of what :func:`encode` makes; the tensors need have no numbers."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in in_file_order(tensors):
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        dtype = _WRITTEN[tensors[name].dtype]
        header[name] = {"data_offsets": [start, end], "dtype": dtype, "shape": list(tensors[name].shape)}
    return _padded(_header_bytes(header))


def in_file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return tensors' names as the library lays their data: the widest types first, names of one type in order."""
    order = tuple(_WRITTEN)
    return sorted(sorted(tensors), key=lambda name: order.index(tensors[name].dtype))


def decode(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Raises:
        UserError: as of :func:`open_tensors` and :func:`read_tensors`.
    """
    with open_tensors(path) as file:
        return read_tensors(file), dict(file.header.metadata)


def read_tensors(file: TensorsFile, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Read tensors of an open file, each into memory of its own: it stays when the file is written over.

    Args:
        file: the file.
        names: of the tensors; None: all.

    Raises:
        UserError: memory is too small, the file changed, or a tensor holds NaN, infinity or what is no float.
    """
    names = file.header.tensors if names is None else names
    check_floating(file.header, names, file.path)
    file.check_memory(file.header.data_bytes)
    tensors = {name: _wide(read_tensor(file, name)) for name in names}
    check_finite(tensors, file.path)
    return tensors


def read_tensor(file: TensorsFile, name: str) -> Tensor:
    """Read one tensor of an open file as it is, whatever its numbers are.

    Raises:
        UserError: the file changed, or cannot be read any more.
    """
    entry = file.header.tensors[name]
    data = torch.empty(entry.end - entry.start, dtype=torch.uint8)
    file.read_into(name, data.numpy())
    return data.view(DTYPES[entry.dtype]).reshape(entry.shape)


def _wide(tensor: Tensor) -> Tensor:
    """Return floats of 8 bits, which torch cannot compute with, in float32, which has each of them."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _header_bytes(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _padded(header: bytes) -> bytes:
    """Return a header with its length before it, and spaces behind it up to the data, which begins at eight bytes."""
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _header(content: bytes) -> dict[str, Any]:
    """Return the header of a file that the library has written, so it is sound: 8 bytes of its length, and JSON."""
    header: dict[str, Any] = json.loads(content[8 : _data_start(content)])
    return header


def _data_start(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity; None if none does."""
    return next((name for name, tensor in tensors.items() if not _is_finite(tensor)), None)


def _is_finite(tensor: Tensor) -> bool:
    """Check that a tensor of floats holds neither NaN nor infinity: a sum that is finite has no such number in it."""
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return math.isfinite(total.item()) or bool(torch.isfinite(tensor).all())


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not numbers to compute with.

    An alpha may be infinite: a LoKr of two whole matrices has none that counts, and LyCORIS writes the rank for it,
    which people set to a million, which float16 does not hold. Whoever asks for alpha refuses one that is infinite.

    Raises:
        UserError: the first that holds NaN or infinity.
    """
    if (name := first_not_finite({n: t for n, t in tensors.items() if not _is_unasked(n, t)})) is not None:
        raise not_finite(name, path)


def _is_unasked(name: str, tensor: Tensor) -> bool:
    return name.endswith(".alpha") and tensor.numel() == 1 and bool(tensor.isinf().all())
