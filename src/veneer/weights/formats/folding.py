"""The strength of an adapter in its tensors, as diffusers' files have it, and a record by which it comes out exactly.

alpha/r times B is rounded unless alpha/r is a power of two, and two numbers may be rounded to one, so that no
calculation tells which it was. What is lost then is written beside the tensors: the difference of the numbers' bits.
Readers that do not know the record lose nothing but that.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from veneer.adapter.protocol import AdapterWeights, Folding, LayerAdapter
from veneer.weights.formats.names import file_path
from veneer.weights.formats.strength import RECORD_KEY
from veneer.weights.small_json import parse_small_json

__all__ = ["fold", "fold_exactly", "read_record", "unfold"]

_ALPHA = "alpha"
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
"""Integers as wide as a float of so many bytes."""
_NARROW = torch.int8
"""What differences are kept in where they are small."""
_PACKED = "2:"
"""Before the text of differences of one unit at most, which rounding once makes: four of them are in a byte."""


def fold(adapter: LayerAdapter) -> LayerAdapter:
    """Return an adapter with its strength in its tensors; one whose readers are told strengths stays as it is."""
    folding = adapter.method.folding
    return adapter if folding is None else folding.fold(adapter)


def fold_exactly(weights: AdapterWeights) -> tuple[dict[str, LayerAdapter], dict[str, str]]:
    """Return a folded adapter, and the metadata from which its strengths come out exactly; empty where alpha is r."""
    folded = {path: fold(adapter) for path, adapter in weights.items()}
    lost = {file_path(path): _lost(adapter, folded[path]) for path, adapter in weights.items()}
    with ThreadPoolExecutor() as pool:  # compression holds no lock
        entries = dict(zip(lost, pool.map(_as_entry, lost.values()), strict=True))
    told = {path: entry for path, entry in sorted(entries.items()) if entry is not None}
    return folded, {RECORD_KEY: json.dumps(told, separators=(",", ":"))} if told else {}


def read_record(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the record in a file's metadata, by the file's names for layers; empty where there is none."""
    try:
        read = parse_small_json(metadata.get(RECORD_KEY, "{}"))
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def unfold(adapter: LayerAdapter, entry: object) -> LayerAdapter:
    """Return the adapter that a folded one was, by its entry in the record.

    Where the entry is not of these very tensors, because another tool changed them, the folded adapter is returned: it
    has the same strength.
    """
    folding = adapter.method.folding
    if folding is None or not isinstance(entry, dict):
        return adapter
    try:
        unfolded = _unfolded(adapter, folding, entry)
    except (ValueError, KeyError, TypeError, ArithmeticError, RuntimeError, zlib.error):  # no entry of ours
        return adapter
    return unfolded if _are_equal(folding.fold(unfolded), adapter) else adapter


def _lost(adapter: LayerAdapter, folded: LayerAdapter) -> dict[str, Any] | None:
    """Return alpha, and the numbers that it takes to undo the folding of one layer; None: it changes nothing."""
    folding = adapter.method.folding
    if folding is None or folded.hyperparameters[_ALPHA] == adapter.hyperparameters[_ALPHA]:
        return None
    alpha = adapter.hyperparameters[_ALPHA]
    near, exact = folding.unfold(folded, alpha).state_dict(), adapter.state_dict()
    lost = {name: _difference(tensor, near[name]) for name, tensor in exact.items() if name != _ALPHA}
    return {_ALPHA: alpha, **{name: numbers for name, numbers in lost.items() if numbers is not None}}


def _as_entry(lost: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what was lost as JSON can hold it."""
    if lost is None:
        return None
    return {name: value if name == _ALPHA else _as_text(value) for name, value in lost.items()}


def _unfolded(adapter: LayerAdapter, folding: Folding, entry: Mapping[str, Any]) -> LayerAdapter:
    near = folding.unfold(adapter, float(entry[_ALPHA])).state_dict()
    for name in entry.keys() - {_ALPHA}:
        near[name] = _with_difference(near[name], entry[name])
    return adapter.method.from_state(near)


def _difference(exact: Tensor, near: Tensor) -> Tensor | None:
    """Return the difference of two tensors' bits, packed where that is possible; None: there is none."""
    if exact is near or torch.equal(exact, near):
        return None
    lost = _bits(exact) - _bits(near)
    least, most = (int(limit) for limit in lost.aminmax())
    if least >= -1 and most <= 1:
        return _packed(lost)
    is_narrow = torch.iinfo(_NARROW).min <= least and most <= torch.iinfo(_NARROW).max
    return lost.to(_NARROW) if is_narrow else lost


def _as_text(numbers: Tensor) -> str:
    text = base64.b64encode(zlib.compress(numbers.numpy().data, 1)).decode()
    return f"{_PACKED}{text}" if numbers.dtype == torch.uint8 else text


def _packed(lost: Tensor) -> Tensor:
    """Return numbers of -1, 0 and 1 as 2 bits each, four in a byte; the last byte is filled up."""
    quarters = functional.pad(lost.to(_NARROW).flatten() + 1, (0, -lost.numel() % 4))
    words = quarters.view(torch.int32)  # the first of four bytes is the lowest
    return ((words | words >> 6 | words >> 12 | words >> 18) & 0xFF).to(torch.uint8)


def _unpacked(data: Tensor, count: int) -> Tensor:
    """Return the first numbers that :func:`_packed` was given."""
    quarters = torch.stack([data >> shift & 3 for shift in (0, 2, 4, 6)], dim=1)
    return quarters.flatten()[:count].to(_NARROW) - 1


def _with_difference(near: Tensor, text: str) -> Tensor:
    """Return the tensor that :func:`_difference` compared with one near it.

    Raises:
        ValueError: the text has not as many numbers.
    """
    bits = _bits(near)
    compressed = base64.b64decode(text.removeprefix(_PACKED), validate=True)
    data = bytearray(zlib.decompressobj().decompress(compressed, bits.nbytes + 1))
    if text.startswith(_PACKED):
        lost = _unpacked(torch.frombuffer(data, dtype=torch.uint8), bits.numel())
    else:
        lost = torch.frombuffer(data, dtype=_NARROW if len(data) == bits.numel() else bits.dtype)
    return (bits + lost.reshape(bits.shape).to(bits.dtype)).view(near.dtype)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(_INTEGERS[tensor.element_size()])


def _are_equal(one: LayerAdapter, other: LayerAdapter) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
