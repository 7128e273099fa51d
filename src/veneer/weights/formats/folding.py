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
from typing import Any

import torch
from torch import Tensor

from veneer.adapter.protocol import AdapterWeights, Folding, LayerAdapter
from veneer.weights.formats.names import file_path
from veneer.weights.formats.strength import RECORD_KEY
from veneer.weights.small_json import parse_small_json

__all__ = ["fold", "fold_exactly", "read_record", "unfold"]

_ALPHA = "alpha"
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
"""Integers as wide as a float of so many bytes."""
_NARROW = torch.int8
"""What differences are kept in where they are small; rounding once takes one unit at most."""


def fold(adapter: LayerAdapter) -> LayerAdapter:
    """Return an adapter with its strength in its tensors; one whose readers are told strengths stays as it is."""
    folding = adapter.method.folding
    return adapter if folding is None else folding.fold(adapter)


def fold_exactly(weights: AdapterWeights) -> tuple[dict[str, LayerAdapter], dict[str, str]]:
    """Return a folded adapter, and the metadata from which its strengths come out exactly; empty where alpha is r."""
    folded = {path: fold(adapter) for path, adapter in weights.items()}
    entries = {file_path(path): _entry(adapter, folded[path]) for path, adapter in weights.items()}
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


def _entry(adapter: LayerAdapter, folded: LayerAdapter) -> dict[str, Any] | None:
    """Return alpha and what it takes to undo the folding of one layer; None: it changes nothing."""
    folding = adapter.method.folding
    if folding is None or folded.hyperparameters[_ALPHA] == adapter.hyperparameters[_ALPHA]:
        return None
    alpha = adapter.hyperparameters[_ALPHA]
    near, exact = folding.unfold(folded, alpha).state_dict(), adapter.state_dict()
    lost = {name: _difference(tensor, near[name]) for name, tensor in exact.items() if name != _ALPHA}
    return {_ALPHA: alpha, **{name: text for name, text in lost.items() if text is not None}}


def _unfolded(adapter: LayerAdapter, folding: Folding, entry: Mapping[str, Any]) -> LayerAdapter:
    near = folding.unfold(adapter, float(entry[_ALPHA])).state_dict()
    for name in entry.keys() - {_ALPHA}:
        near[name] = _with_difference(near[name], entry[name])
    return adapter.method.from_state(near)


def _difference(exact: Tensor, near: Tensor) -> str | None:
    """Return the difference of two tensors' bits as text; None: there is none."""
    if exact is near or torch.equal(exact, near):
        return None
    lost = _bits(exact) - _bits(near)
    if int(lost.abs().max()) <= torch.iinfo(_NARROW).max and int(lost.min()) > torch.iinfo(lost.dtype).min:
        lost = lost.to(_NARROW)
    return base64.b64encode(zlib.compress(lost.numpy().tobytes(), 1)).decode()


def _with_difference(near: Tensor, text: str) -> Tensor:
    """Return the tensor that :func:`_difference` compared with one near it.

    Raises:
        ValueError: the text has not as many numbers.
    """
    bits = _bits(near)
    packed = base64.b64decode(text, validate=True)
    data = zlib.decompressobj().decompress(packed, bits.nbytes + 1)
    dtype = _NARROW if len(data) == bits.numel() else bits.dtype
    lost = torch.frombuffer(bytearray(data), dtype=dtype).reshape(bits.shape)
    return (bits + lost.to(bits.dtype)).view(near.dtype)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(_INTEGERS[tensor.element_size()])


def _are_equal(one: LayerAdapter, other: LayerAdapter) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
