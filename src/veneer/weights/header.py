"""The header of a safetensors file: read in bounded time and memory, and checked to the last byte.

The format (https://github.com/huggingface/safetensors): 8 bytes with the length of a JSON object, the object, the data.
The object has each tensor's dtype, shape and place in the data, and texts under ``__metadata__``. Its members are
parsed one by one and none may be long but texts, so that a header takes a few times its own size in memory and no more.
Nothing here needs torch: an adapter is summed up without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]  # not in typeshed
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from veneer.errors import UserError

__all__ = [
    "ITEM_BYTES",
    "Header",
    "RawHeader",
    "TensorEntry",
    "bad_header",
    "parse_header",
    "parse_raw_header",
    "shown",
]

_MOST_MEMBERS = 50_000  # tensors, or keys of the metadata; an adapter of SDXL has a few thousand tensors
_ENTRY_LENGTH = 2_000  # characters that say what a tensor is; usually 70
_VALUE_LENGTH = 2**20  # characters of a value in the metadata that is no text
_METADATA = "__metadata__"
ITEM_BYTES: Mapping[str, int] = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2},
    **{"F8_E4M3": 1, "F8_E4M3FNUZ": 1, "F8_E5M2": 1, "F8_E5M2FNUZ": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}
"""The types that are read, by the format's name, with the bytes that one number takes."""


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of a tensor.

    Attributes:
        dtype: of its numbers, by the format's name, a key of ``ITEM_BYTES``.
        shape: in rows, columns and so on.
        start: its first byte, counted from the beginning of the data.
        end: the byte behind its last.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a header says, checked.

    Attributes:
        tensors: by name, in the order of their bytes.
        metadata: texts by key; a value that is no text is its JSON.
        data_bytes: how many bytes the tensors take.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_bytes: int


def parse_header(text: bytes, path: Path) -> Header:
    """Return what a header says, once it is known to make sense.

    Args:
        text: the JSON.
        path: of the file, for messages.

    Raises:
        UserError: it is no JSON object, or what it says of a tensor cannot be; or it holds a type that is not read.
    """
    try:
        tensors, metadata = _split(text.decode("utf-8"), lambda name, value, _: _entry(name, value))
    except UnicodeDecodeError as error:
        raise bad_header(f"its header is not UTF-8 at byte {error.start}", path) from None
    except _Broken as broken:
        raise bad_header(str(broken), path) from None
    except _UnknownType as unknown:
        remedy = "ask its maker for float16, bfloat16 or float32"
        raise UserError(str(unknown), code="weights.unsupported_dtype", where=path, remedy=remedy) from None
    return Header(tensors, metadata, max((entry.end for entry in tensors.values()), default=0))


@dataclass(frozen=True)
class RawHeader:
    """What a header says, with its tensors as they stand there, of types that are read or not.

    Attributes:
        entries: what is said of each tensor, as JSON, by its name, in the header's order.
        metadata: texts by key; a value that is no text is its JSON.
        data_bytes: how many bytes the tensors take.
    """

    entries: Mapping[str, str]
    metadata: Mapping[str, str]
    data_bytes: int

    def encode(self, metadata: Mapping[str, str]) -> bytes:
        """Return the same header with other metadata, with its length before it, as a file begins."""
        said = {_METADATA: _compact(dict(sorted(metadata.items())))} if metadata else {}
        members = (f"{_compact(name)}:{entry}" for name, entry in {**said, **self.entries}.items())
        text = f"{{{','.join(members)}}}".encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def _compact(value: object) -> str:
    """Return a value as JSON as the library writes it, without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def parse_raw_header(text: bytes, path: Path) -> RawHeader:
    """Return what a header says, once its tensors are known to fill the data without holes; no type is looked at.

    Args:
        text: the JSON.
        path: of the file, for messages.

    Raises:
        UserError: it is no JSON object, or its tensors overlap or leave holes.
    """
    try:
        entries, places, metadata = _split_raw(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise bad_header(f"its header is not UTF-8 at byte {error.start}", path) from None
    except _Broken as broken:
        raise bad_header(str(broken), path) from None
    return RawHeader(entries, metadata, max((entry.end for entry in places.values()), default=0))


def _split_raw(text: str) -> tuple[dict[str, str], dict[str, TensorEntry], dict[str, str]]:
    entries: dict[str, str] = {}

    def entry(name: str, value: Any, source: str) -> TensorEntry:
        dtype, shape, offsets = _fields(value) or _refuse(name)
        entries[name] = source
        return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])

    places, metadata = _split(text, entry)
    return entries, places, metadata


def bad_header(what: str, path: Path) -> UserError:
    """Return the error for a header that does not make sense."""
    remedy = "nothing of it was read; ask its maker for a file that safetensors wrote"
    return UserError(what, code="weights.bad_header", where=path, remedy=remedy)


class _Broken(Exception):
    """A header that does not make sense; the text says why."""


class _UnknownType(Exception):
    """A type of numbers that is not read; the text says which."""


def _split(text: str, entry: Callable[[str, Any, str], TensorEntry]) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Return a header's tensors and metadata.

    Args:
        text: the JSON.
        entry: makes a tensor's entry of its name, its value and the JSON of that.
    """
    tensors: dict[str, TensorEntry] = {}
    metadata: dict[str, str] | None = None
    whole = _Members(text, 0, "its header")
    for name in whole:
        if name == _METADATA:
            if metadata is not None:
                raise _Broken(f"its header has {_METADATA} twice")
            metadata = _metadata(whole)
        elif name in tensors:
            raise _Broken(f"its header has tensor {shown(name)} twice")
        else:
            tensors[name] = entry(name, *whole.value(_ENTRY_LENGTH))
    if text[whole.end :].strip(" \t\r\n"):
        raise _Broken("its header has something behind the JSON object")
    return _in_order(tensors), metadata or {}


def _in_order(tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return the tensors in the order of their bytes, once they are known to fill these without holes."""
    ordered = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end))
    end = 0
    for name, entry in ordered:
        if entry.start != end:
            what = "overlaps the one before it" if entry.start < end else "has a hole before it"
            raise _Broken(f"tensor {shown(name)} {what}: it begins at byte {entry.start} of the data, not at {end}")
        end = entry.end
    return dict(ordered)


def _entry(name: str, entry: Any) -> TensorEntry:
    """Return what a header says of one tensor, once its shape, type and bytes are known to agree."""
    dtype, shape, offsets = _fields(entry) or _refuse(name)
    if dtype not in ITEM_BYTES:
        raise _UnknownType(f"holds numbers of type {shown(dtype)}")
    size = _product(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != size:
        what = f"is {dtype} of shape {tuple(shape)!s:.80}, {size!s:.30} bytes, and has the bytes of {offsets!s:.80}"
        raise _Broken(f"tensor {shown(name)} {what}")
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _fields(entry: Any) -> tuple[str, list[int], list[int]] | None:
    """Return the type, the shape and the two offsets of a tensor; None where they are not there or are none."""
    if not isinstance(entry, dict):
        return None
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if isinstance(dtype, str) and _are_counts(shape) and _are_counts(offsets) and len(offsets) == 2:
        return dtype, shape, offsets
    return None


def _refuse(name: str) -> NoReturn:
    raise _Broken(f"what its header says of tensor {shown(name)} is no dtype, shape and data_offsets")


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    """Return whether a value is a list of whole numbers from 0."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _metadata(whole: _Members) -> dict[str, str]:
    """Return the texts under ``__metadata__``; the format wants texts, and other JSON is kept as it stands there."""
    if not whole.is_at("{"):
        value, source = whole.value(_VALUE_LENGTH)
        if value is None:
            return {}
        raise _Broken(f"its {_METADATA} is {shown(source)} and no JSON object of texts")
    inside = _Members(whole.text, whole.end, f"its {_METADATA}")
    found: dict[str, str] = {}
    for key in inside:
        if key in found:
            raise _Broken(f"its metadata has {shown(key)} twice")
        found[key] = inside.string() if inside.is_at('"') else inside.value(_VALUE_LENGTH)[1]
    whole.end = inside.end
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def shown(name: str) -> str:
    """Return a name from a file as a message shows it: short, and printable."""
    short = name if len(name) <= 80 else f"{name[:60]}..."
    return short if short and short.isprintable() else ascii(short)


_HALVES = re.compile("[\ud800-\udfff]")
"""Halves of characters, which JSON can escape and no file can be written with."""
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(object_pairs_hook=_once)
_SHORT = 1_000  # characters that are tried first: most values are short


class _Members:
    """The members of a JSON object, one after the other: each name, and then its value is to be taken.

    Attributes:
        text: in which the object is.
        end: the place of what comes next.
    """

    def __init__(self, text: str, start: int, subject: str) -> None:
        self.text, self.end, self._subject = text, start, subject

    def __iter__(self) -> Iterator[str]:
        self._expect("{", "no JSON object")
        if self._take("}"):
            return
        for _ in range(_MOST_MEMBERS):
            if not self.is_at('"'):
                raise self._broken("a name should be here")
            name = self.string()
            self._expect(":")
            yield name
            if self._take("}"):
                return
            self._expect(",")
        raise _Broken(f"{self._subject} has more than {_MOST_MEMBERS:,} names, which no adapter has")

    def is_at(self, mark: str) -> bool:
        """Return whether the next character but blanks is this one."""
        space = _SPACE.match(self.text, self.end)
        assert space is not None, "it matches nothing too"
        self.end = space.end()
        return self.text.startswith(mark, self.end)

    def string(self) -> str:
        """Take the text that comes next."""
        try:
            value, self.end = scanstring(self.text, self.end + 1)
        except ValueError as error:
            raise self._broken(str(error)) from None
        if _HALVES.search(value):
            raise self._broken("a text is not Unicode")
        return str(value)

    def value(self, longest: int) -> tuple[Any, str]:
        """Take the value that comes next, whatever it is; return it and its JSON.

        Args:
            longest: characters that it may have.
        """
        self.is_at("")
        for length in (min(longest, _SHORT), longest):
            piece = self.text[self.end : self.end + length]
            try:
                value, end = _DECODER.raw_decode(piece)
            except (ValueError, RecursionError) as error:
                reason = "it is too deep" if isinstance(error, RecursionError) else str(error)
                continue
            if end < length:
                self.end += end
                return value, piece[:end]
            reason = f"a value has more than {longest:,} characters"
        raise self._broken(reason)

    def _take(self, mark: str) -> bool:
        found = self.is_at(mark)
        self.end += found
        return found

    def _expect(self, mark: str, otherwise: str = "no sound JSON") -> None:
        if not self._take(mark):
            raise _Broken(f"{self._subject} is {otherwise}: character {self.end} of the header is not {mark}")

    def _broken(self, reason: str) -> _Broken:
        return _Broken(f"{self._subject} is no sound JSON at character {self.end} of the header: {reason}")
