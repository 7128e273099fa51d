"""Corruptions of valid adapter files, made from a seed: what happens to files on disks, in downloads and by strangers.

A corruption is *fatal* if every reader must refuse it, and *silent* if it may leave another valid file, which nothing
in the file tells apart from the one that was meant: other numbers, another strength.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import pickle
import random
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Bomb", "Corruption", "Sound", "corruptions", "parse"]

CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"
TYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I64": np.int64, "I8": np.int8, "BOOL": np.bool_}


@dataclass
class Entry:
    """A tensor of a file: its type, its shape and its bytes, which need not agree."""

    dtype: str
    shape: list[Any]
    data: bytes


@dataclass
class Sound:
    """A valid file, taken apart.

    Attributes:
        title: its format and method.
        entries: its tensors by name, in the order of their bytes.
        metadata: of its header.
        beside: other files of its folder.
    """

    title: str
    entries: dict[str, Entry]
    metadata: dict[str, Any]
    beside: dict[str, bytes] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any] | None:
        """What tells the strength besides the tensors, wherever it is."""
        return json.loads(self.config_text) if self.config_text else None

    @property
    def config_text(self) -> bytes | str | None:
        """The same as text."""
        return self.beside.get(CONFIG) or self.metadata.get(METADATA)

    def with_config(self, change: Callable[[dict[str, Any]], object] | bytes | str) -> Sound | None:
        """The same with another config, in the place where it is; None: the file has none."""
        if self.config is None:
            return None
        other = copy.deepcopy(self)
        text: bytes | str = change if isinstance(change, bytes | str) else json.dumps(_changed(self.config, change))
        if CONFIG in self.beside:
            other.beside[CONFIG] = text.encode() if isinstance(text, str) else text
        else:
            other.metadata[METADATA] = text.decode("latin1") if isinstance(text, bytes) else text
        return other

    def header(self) -> dict[str, Any]:
        """The header's JSON, in which offsets are those of the bytes."""
        header: dict[str, Any] = {"__metadata__": self.metadata} if self.metadata else {}
        end = 0
        for name, entry in self.entries.items():
            start, end = end, end + len(entry.data)
            header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}
        return header

    def data(self) -> bytes:
        """The bytes behind the header."""
        return b"".join(entry.data for entry in self.entries.values())

    def content(self) -> bytes:
        """The file."""
        return framed(json.dumps(self.header()).encode(), self.data())


@dataclass(frozen=True)
class Corruption:
    """A corrupt file.

    Attributes:
        title: of the file that it was, and what happened to it.
        name: of the file.
        content: of the file.
        beside: other files of its folder; None as content: a folder.
        fatal: whether it must be refused.
    """

    title: str
    name: str
    content: bytes
    beside: Mapping[str, bytes | None]
    fatal: bool

    def write(self, folder: Path) -> Path:
        """Write it into a folder; return the file's path."""
        for name, content in {self.name: self.content, **self.beside}.items():
            if content is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(content)
        return folder / self.name

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return len(self.content) + sum(len(content or b"") for content in self.beside.values())


def framed(header: bytes, data: bytes) -> bytes:
    """A file of a header and data."""
    return len(header).to_bytes(8, "little") + header + data


def parse(title: str, path: Path) -> Sound:
    """Take a valid file apart, by the format's definition alone."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", {})
    entries = {
        name: Entry(
            told["dtype"], told["shape"], content[start + told["data_offsets"][0] : start + told["data_offsets"][1]]
        )
        for name, told in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    }
    beside = {CONFIG: (path.parent / CONFIG).read_bytes()} if (path.parent / CONFIG).exists() else {}
    return Sound(title, entries, metadata, beside)


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def corruptions(sound: Sound, seed: int, crater: Path) -> Iterator[Corruption]:
    """Yield all corruptions of a file; the places that they hit are drawn from a seed.

    Args:
        sound: the file.
        seed: of what is drawn.
        crater: what a pickle in it makes when it is opened.
    """
    for kind, make in {**_TENSORS, **_CONFIGS}.items():
        draw = random.Random(f"{seed} {sound.title} {kind}")
        for number, (other, fatal) in enumerate(make(copy.deepcopy(sound), draw)):
            title = f"{sound.title}: {kind} {number}"
            yield Corruption(title, "adapter_model.safetensors", other.content(), other.beside, fatal)
    for kind, change in {**_HEADERS, **_BYTES}.items():
        draw = random.Random(f"{seed} {sound.title} {kind}")
        for number, (content, fatal) in enumerate(change(copy.deepcopy(sound), draw)):
            title = f"{sound.title}: {kind} {number}"
            yield Corruption(title, "adapter_model.safetensors", content, sound.beside, fatal)
    yield from _pickles(sound, crater)
    if CONFIG in sound.beside and METADATA not in sound.metadata:
        content = sound.content()
        yield Corruption(f"{sound.title}: no config", "adapter_model.safetensors", content, {}, True)
        yield Corruption(
            f"{sound.title}: config is a folder", "adapter_model.safetensors", content, {CONFIG: None}, True
        )


def _changed(config: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    own = copy.deepcopy(config)
    change(own)
    return own


def numbers(dtype: str, shape: list[int], value: float = 1.0) -> Entry:
    """A tensor of one number."""
    return Entry(dtype, shape, np.full(shape, value, TYPES[dtype]).tobytes())


_MARKS = (".lora_", ".hada_", ".lokr_", ".oft_", ".dora_scale", ".alpha", ".diff", ".on_input", ".rescale")
_MARKS += (".a1", ".a2", ".b1", ".b2", ".bm", ".weight")


def _ending(name: str) -> str:
    return next((name[name.index(mark) :] for mark in _MARKS if mark in name), "")


def _factors(sound: Sound) -> list[str]:
    """Names of tensors that a layer is made of: matrices, no magnitudes."""
    vectors = ("dora_scale", "magnitude", "rescale")
    return [
        name
        for name, entry in sound.entries.items()
        if len(entry.shape) >= 2 and not any(one in name for one in vectors)
    ]


def _is_lora(name: str) -> bool:
    return ".lora_" in name


Made = Iterator[tuple[Sound, bool]]


def _without(sound: Sound, name: str) -> Sound:
    del sound.entries[name]
    return sound


def _renamed(sound: Sound, draw: random.Random) -> Made:
    """One tensor under another name: of another layer, of another ending, of nothing."""
    name = draw.choice(_factors(sound))
    ending, layer = _ending(name), name.removesuffix(_ending(name))
    others = [
        f"{layer}_2{ending}",
        f"{layer}.lora_Q.weight",
        f"{layer}{ending}.old",
        "weight",
        "../../x",
        f"{layer}{ending}\u202e",
    ]
    for other in others:
        own = copy.deepcopy(sound)
        own.entries[other] = own.entries.pop(name)
        yield own, _is_lora(name) or not other.endswith(".old")  # peft puts an adapter's name there


def _renamed_layer(sound: Sound, draw: random.Random) -> Made:
    """A layer that the base does not have, in all of its tensors."""
    name = draw.choice(_factors(sound))
    layer = name.removesuffix(_ending(name))
    other = layer[:-1] + ("x" if layer[-1] != "x" else "y")
    sound.entries = {
        (f"{other}{_ending(own)}" if own.removesuffix(_ending(own)) == layer else own): entry
        for own, entry in sound.entries.items()
    }
    yield sound, True


def _missing(sound: Sound, draw: random.Random) -> Made:
    for name in draw.sample(_factors(sound), min(2, len(_factors(sound)))):
        yield _without(copy.deepcopy(sound), name), _is_lora(name)
    yield Sound(sound.title, {}, sound.metadata, sound.beside), True


def _transposed(sound: Sound, draw: random.Random) -> Made:
    flat = [name for name in _factors(sound) if len(set(sound.entries[name].shape)) > 1]
    for name in draw.sample(flat, min(2, len(flat))):
        own = copy.deepcopy(sound)
        own.entries[name].shape.reverse()
        yield own, _is_lora(name)


def _extra(sound: Sound, draw: random.Random) -> Made:
    name = draw.choice(_factors(sound))
    ending, layer = _ending(name), name.removesuffix(_ending(name))
    for other in ("x", f"{layer}.weight", f"{layer}.lora_C.weight", f"module.{layer}{ending}", "optimizer.state.0"):
        if other not in sound.entries:
            own = copy.deepcopy(sound)
            own.entries[other] = copy.deepcopy(own.entries[name])
            yield own, True


def _not_finite(sound: Sound, draw: random.Random) -> Made:
    for value in (np.nan, np.inf, -np.inf):
        own, name = copy.deepcopy(sound), draw.choice(_factors(sound))
        array = np.frombuffer(own.entries[name].data, TYPES[own.entries[name].dtype]).copy()
        array[draw.randrange(len(array))] = value
        own.entries[name].data = array.tobytes()
        yield own, True


def _other_types(sound: Sound, draw: random.Random) -> Made:
    for dtype in ("I8", "I64", "BOOL"):
        own, name = copy.deepcopy(sound), draw.choice(_factors(sound))
        own.entries[name] = numbers(dtype, own.entries[name].shape)
        yield own, True


def _other_sizes(sound: Sound, draw: random.Random) -> Made:
    """Numbers of another shape, as many as that says."""
    name = draw.choice(_factors(sound))
    shape = sound.entries[name].shape
    others = [[shape[0] + 1, *shape[1:]], [shape[0], shape[1] + 1, *shape[2:]], [*shape, 1], [int(np.prod(shape))], []]
    for number, other in enumerate(others):
        own = copy.deepcopy(sound)
        own.entries[name] = numbers("F32", other)
        # a vector is one in any shape, and an axis of 1 more says nothing
        yield own, _is_lora(name) or (number < 2 and min(shape) > 1)


def _nothing_in_it(sound: Sound, draw: random.Random) -> Made:
    """Rank 0, and tensors without a number of any size."""
    name = draw.choice(_factors(sound))
    layer = name.removesuffix(_ending(name))
    for size in (0, 2**40):
        own = copy.deepcopy(sound)
        for other in [each for each in _factors(own) if each.startswith(layer)]:
            shape = own.entries[other].shape
            own.entries[other] = Entry("F32", [0, *(size or each for each in shape[1:])], b"")
        yield own, True
    own = copy.deepcopy(sound)
    own.entries[name] = Entry("F32", [0], b"")
    yield own, True


ALPHAS: list[tuple[str, list[int], float, bool]] = [
    ("F32", [], np.nan, True), ("F32", [], np.inf, True), ("F16", [], -np.inf, True), ("F32", [3], 1.0, True),
    ("F32", [2, 2], 1.0, True), ("F32", [0], 1.0, True), ("BOOL", [], 1.0, True), ("F32", [1], 1.0, False),
    ("F64", [1, 1], 3.0, False), ("F32", [], -1.0, False), ("F32", [], 0.0, False), ("I64", [], 3.0, False),
    ("I8", [2], 3.0, True), ("F32", [1000], 1.0, True),
]  # fmt: skip


def _alphas(sound: Sound, draw: random.Random) -> Made:
    """An alpha of an odd shape or value; where the config tells the strength, another is a contradiction."""
    if not any(name.endswith((".lora_A.weight", ".lora_down.weight")) for name in sound.entries):
        return
    name = draw.choice([each for each in _factors(sound) if "lora_" in each])
    alpha = name.removesuffix(_ending(name)) + ".alpha"
    for dtype, shape, value, fatal in ALPHAS:
        own = copy.deepcopy(sound)
        own.entries[alpha] = numbers(dtype, shape, value)
        yield own, fatal or sound.config is not None


def _notes(sound: Sound, draw: random.Random) -> Made:
    """Metadata of no consequence, of any size and depth: the file stays what it is."""
    for value in ("x" * 2**21, "[" * 10**5, "[" + "[]," * 4 * 10**5 + "1]", "\x00\x1b[2J", {"a": [1, {"b": None}]}):
        own = copy.deepcopy(sound)
        own.metadata["ss_tag_frequency"] = value
        own.metadata["veneer.unfolded"] = value
        own.metadata["note"] = value
        yield own, False


_TENSORS: Mapping[str, Callable[[Sound, random.Random], Made]] = {
    "renamed": _renamed,
    "renamed layer": _renamed_layer,
    "missing": _missing,
    "transposed": _transposed,
    "extra": _extra,
    "not finite": _not_finite,
    "other types": _other_types,
    "other sizes": _other_sizes,
    "nothing in it": _nothing_in_it,
    "alpha": _alphas,
    "notes": _notes,
}


def _configs(sound: Sound, draw: random.Random) -> Made:
    """A config that contradicts the tensors, or makes no sense."""
    prefix = "" if CONFIG in sound.beside else "unet."
    key = f"{prefix}lora_alpha"
    if sound.config is None or key not in sound.config:
        return
    changes: list[Callable[[dict[str, Any]], object]] = [
        *(lambda c, v=value: c.update({f"{prefix}r": v}) for value in (3, 0, -2, 2.5, "2", None, [2], 10**400)),
        *(lambda c, v=value: c.update({key: v}) for value in (None, "much", [1], 10**400, {"a": 1})),
        lambda c: c.pop(f"{prefix}r"),
        lambda c: c.pop(key),
        lambda c: c.clear(),
        lambda c: c.update({f"{prefix}use_dora": not c.get(f"{prefix}use_dora", False)}),
        lambda c: c.update({f"{prefix}init_lora_weights": "pissa"}),
        lambda c: c.update({f"{prefix}rank_pattern": {"(a+)+$": 4, "to_q": 7}}),
        lambda c: c.update({f"{prefix}alpha_pattern": [1]}),
    ]
    texts: list[bytes | str] = [
        "",
        "{",
        "[1]",
        "null",
        '{"a":' * 10**5,
        "[" + "[]," * 4 * 10**5 + "1]",
        "NaN",
        b"\xff\xfe{\x00}\x00",
    ]
    texts += [json.dumps({**sound.config, key: value}) for value in (float("nan"), float("inf"), -float("inf"))]
    for change in (*changes, *texts):
        if (own := sound.with_config(change)) is not None and own.config_text != sound.config_text:
            yield own, True


_CONFIGS: Mapping[str, Callable[[Sound, random.Random], Made]] = {"config": _configs}

Bytes = Iterator[tuple[bytes, bool]]


def _entries(sound: Sound, draw: random.Random) -> Bytes:
    """Headers that lie about one tensor."""
    header = sound.header()
    name = draw.choice(_factors(sound))
    told = header[name]
    start, end = told["data_offsets"]
    shape = told["shape"]
    lies: list[dict[str, Any]] = [
        *({"shape": value} for value in ([2**40, 2**40], [2**62, 4], [-1, -12], [-shape[0], *shape[1:]], [10**900, 2])),
        *(
            {"shape": value}
            for value in (
                [float(n) for n in shape],
                [str(n) for n in shape],
                [[n] for n in shape],
                None,
                12,
                [True, 12],
            )
        ),
        *({"shape": value} for value in ([n + 1 for n in shape], shape[:1], [1] * 2000)),
        *(
            {"data_offsets": value}
            for value in ([end, start], [start - 4, end], [start, end + 4], [start, end, end], [-4, 8], [0.0, 1.0])
        ),
        *(
            {"data_offsets": value}
            for value in ([start + 2**63, end + 2**63], [start + 4, end + 4], "0-9", None, [start], [None, None])
        ),
        *({"dtype": value} for value in ("F64", "F16", "F7", 3, None, "", "f32", "C64", "I32", "\x1b[2J")),
    ]
    for lie in lies:
        fits = isinstance(lie.get("shape"), list) and lie["shape"] == shape[:1]  # where the other axes are 1
        yield framed(json.dumps({**header, name: {**told, **lie}}).encode(), sound.data()), not fits
    for value in (None, 7, [], {}, "x", {"dtype": "F32"}, [[[]]]):
        yield framed(json.dumps({**header, name: value}).encode(), sound.data()), True


def _json(sound: Sound, draw: random.Random) -> Bytes:
    """Headers that are no sound JSON, or say a thing twice."""
    text, data = json.dumps(sound.header()), sound.data()
    name = draw.choice(_factors(sound))
    once = json.dumps({name: sound.header()[name]})[1:-1]
    deep = "[" * 10**5 + "]" * 10**5
    for other in (
        text[:-1] + "," + once + "}",
        text.replace('"dtype"', '"dtype": "F16", "dtype"', 1),
        text[:-1] + ', "__metadata__": {}, "__metadata__": {}}',
        text[:-1] + ', "x": ' + deep + "}",
        text[:-1] + ', "x": ' + "[" + "0," * 10**5 + "0]}",
        text[:-1],
        text[:-1] + ",}",
        text + "{}",
        text + "\x00\x00",
        "\ufeff" + text,
        f"[{text}]",
        text.replace('"', "'"),
        text.replace(":", "=", 1),
        text.replace(name[:4], "\\ud800", 1),
        text.replace(name[:4], "a\x07b", 1),
        text.replace(name, name * 200, 1),
        text.replace(name, "", 1),
        text[: draw.randrange(20, len(text) - 1)],
        text.replace("F32", "F\\u0033\\u0033", 1),
    ):
        yield framed(other.encode("utf-8", "surrogatepass"), data), True
    yield framed(text.encode().replace(name[:4].encode(), b"\xff\xfe", 1), data), True
    yield framed(text.encode("utf-16"), data), True


def _lengths(sound: Sound, draw: random.Random) -> Bytes:
    content = sound.content()
    length = int.from_bytes(content[:8], "little")
    for other in (
        0,
        1,
        2,
        length - 1,
        length + 1,
        draw.randrange(3, length),
        len(content) - 8,
        len(content),
        10**8 + 1,
        2**63,
        2**64 - 1,
    ):
        yield other.to_bytes(8, "little") + content[8:], True


_HEADERS: Mapping[str, Callable[[Sound, random.Random], Bytes]] = {"entry": _entries, "json": _json, "length": _lengths}


def _cuts(sound: Sound, draw: random.Random) -> Bytes:
    content = sound.content()
    for place in (0, 1, 7, 8, 9, *sorted(draw.sample(range(10, len(content)), 8)), len(content) - 1):
        yield content[:place], True
    yield content + b"\0", True
    yield content + content, True
    yield content[draw.randrange(1, 100) :], True
    yield b"\n" + content, True


def _flips(sound: Sound, draw: random.Random) -> Bytes:
    """Single bytes that are others; in the data nothing tells, in the header hardly anything does."""
    content = sound.content()
    data = 8 + int.from_bytes(content[:8], "little")
    for place in (*draw.sample(range(8, data), 10), *draw.sample(range(data, len(content)), 3)):
        value = draw.choice([each for each in range(256) if each != content[place]])
        yield content[:place] + bytes([value]) + content[place + 1 :], False
    for place in draw.sample(range(8, data), 3):
        yield content[:place] + content[place + 1 :], False


def _garbage(sound: Sound, draw: random.Random) -> Bytes:
    content = sound.content()
    yield draw.randbytes(len(content)), True
    yield bytes(len(content)), True
    yield b"\xff" * len(content), True
    yield content[::-1], True
    yield gzip.compress(content, mtime=0), True
    yield b64encode(content), True
    yield content.replace(b"\n", b"\r\n"), False  # as text mode copies
    yield content.decode("latin1").encode("utf-8"), True
    yield zipped("adapter_model.safetensors", content), True
    yield b"<!DOCTYPE html><html>" + content, True
    yield b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", True
    yield b'{"error": "not found"}', True


_BYTES: Mapping[str, Callable[[Sound, random.Random], Bytes]] = {"cut": _cuts, "flip": _flips, "garbage": _garbage}


def zipped(name: str, content: bytes) -> bytes:
    """A zip of one file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def _pickles(sound: Sound, crater: Path) -> Iterator[Corruption]:
    """Pickles under any name, which must not be opened, and the file under the name of one."""
    for protocol in (0, 2, 4):
        content = pickle.dumps({name: Bomb(crater) for name in sound.entries}, protocol=protocol)
        for name in ("adapter_model.safetensors", "adapter_model.bin"):
            yield Corruption(f"{sound.title}: pickle {protocol} as {name}", name, content, sound.beside, True)
    content = zipped("archive/data.pkl", pickle.dumps(Bomb(crater), protocol=2))
    for name in ("adapter_model.safetensors", "adapter_model.pt"):
        yield Corruption(f"{sound.title}: torch's zip as {name}", name, content, sound.beside, True)
    yield Corruption(f"{sound.title}: under a pickle's name", "adapter_model.bin", sound.content(), sound.beside, True)
