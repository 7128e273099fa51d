"""Sum up an adapter file without its base; of LoRA and DoRA without torch, which would take longer than all the rest.

Files of other methods are read by :mod:`veneer.weights.file`, which imports torch.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from veneer.errors import UserError
from veneer.files import opens_paths
from veneer.weights.adapter_path import files_in
from veneer.weights.formats.foreign import family_of, refuse_foreign
from veneer.weights.formats.left_out import LeftOut, leave_out, left_out_by_name
from veneer.weights.formats.names import NETWORKS, TensorName
from veneer.weights.formats.parts import (
    Settings,
    by_layer,
    check_settings,
    in_layer,
    method_of,
    parse_names,
    require_known,
)
from veneer.weights.formats.peft_config import METADATA_KEY
from veneer.weights.formats.places import LayerPlace, place_of
from veneer.weights.formats.scales import scales_of
from veneer.weights.formats.strength import CONFIG_NAME, NETWORK_KEY, RECORD_KEY, settings_beside
from veneer.weights.hashes import FileHashes, hashing
from veneer.weights.header import Header
from veneer.weights.lora_norms import summarise_lora
from veneer.weights.tensors_file import TensorsFile, check_floating, open_tensors, readable
from veneer.weights.training_summary import TrainingSummary, training_summary

__all__ = [
    "TENSORS_HASH",
    "AdapterInfo",
    "AdapterNames",
    "LayerInfo",
    "free_metadata",
    "hash_note",
    "info",
    "located_at",
    "read_adapter_names",
    "read_names",
]

TENSORS_HASH = "veneer.tensors.sha256"
"""Key of a file's metadata with the hash of its tensors and their strength."""
_FORMAT_KEYS = frozenset({METADATA_KEY, NETWORK_KEY, RECORD_KEY, "format"})
"""Keys of a file's metadata that belong to a format: those of ``registry.METADATA_KEYS``, which takes torch."""
_RECORDED_HASH = "sshs_model_hash"
_WITHOUT_TORCH = {"lora", "dora"}
_PARTS_WITHOUT_TORCH = {"down", "up", "mid", "alpha", "magnitude", "dora_scale"}
_THREADS = 2  # that read layers: numpy leaves Python's lock while it computes


@dataclass(frozen=True)
class LayerInfo:
    """One layer of an adapter file.

    Attributes:
        name: the file's name for it.
        place: where in its network it is, as far as the name tells.
        method: title of its method.
        hyperparameters: by the method's names for them: ``rank``, ``alpha``.
        parameters: how many numbers were trained.
        strength_in: where its strength is told: in an ``alpha`` tensor, the header's metadata or a config beside it;
            nowhere means 1.
        norm: Frobenius norm of delta W; of a DoRA that of its (alpha/r) B A, for its delta W depends on the base; None:
            it takes the base to tell.
    """

    name: str
    place: LayerPlace
    method: str
    hyperparameters: Mapping[str, float]
    parameters: int
    strength_in: tuple[str, ...]
    norm: float | None

    @property
    def scale(self) -> float | None:
        """Its strength alpha/r; None: its method has no such."""
        rank, alpha = self.hyperparameters.get("rank"), self.hyperparameters.get("alpha")
        return alpha / rank if rank and alpha is not None else None


@dataclass(frozen=True)
class AdapterInfo:
    """The content of an adapter file, as far as it can be told without its base.

    Attributes:
        format: whose names the tensors have: diffusers, peft, kohya, native (``diffusion_model.`` and the model's own
            names, as ComfyUI and others write), attn_processor (diffusers' of 2023), or
            several of them.
        family: of bases that it is for, as far as names, shapes or metadata tell.
        tensors: how many it has.
        layers: each that it changes, by the file's names.
        needs_base: whether only the base can tell which layers the names mean.
        dtypes: how many numbers there are of each type, by the file format's name for it: ``F16``, ``BF16``.
        size_bytes: of the file.
        hashes: of the file.
        metadata: without the format's own.
        left_out: what of it is known, but no part of the adapter.
    """

    format: str
    family: str | None
    tensors: int
    layers: tuple[LayerInfo, ...]
    needs_base: bool
    dtypes: Mapping[str, int]
    size_bytes: int
    hashes: FileHashes
    metadata: Mapping[str, str]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """Titles of the methods that occur."""
        return tuple(sorted({layer.method for layer in self.layers}))

    @property
    def networks(self) -> tuple[str, ...]:
        """Prefixes of the networks that it changes; none where only the base can tell."""
        return tuple(sorted({layer.place.network for layer in self.layers if layer.place.network is not None}))

    @property
    def targets(self) -> int:
        """Number of layers that it changes."""
        return len(self.layers)

    @property
    def hyperparameters(self) -> Mapping[str, tuple[float, ...]]:
        """Each value that occurs, rising, by the methods' names for them: ``rank``, ``alpha``."""
        values: dict[str, set[float]] = {}
        for layer in self.layers:
            for name, value in layer.hyperparameters.items():
                values.setdefault(name, set()).add(value)
        return {name: tuple(sorted(each)) for name, each in values.items()}

    @property
    def scales(self) -> tuple[float, ...]:
        """Each strength alpha/r that occurs, rising."""
        return tuple(sorted({layer.scale for layer in self.layers if layer.scale is not None}))

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return self.hashes.sha256

    @property
    def kinds(self) -> Mapping[str, int]:
        """How many layers there are of each kind, such as ``attn1.to_q``; the most frequent first."""
        return dict(Counter(layer.place.kind for layer in self.layers).most_common())

    @property
    def norms(self) -> Mapping[tuple[str, str], float]:
        """Frobenius norm of delta W by network and block, all its layers' together, in the file's order of blocks."""
        squares: dict[tuple[str, str], float] = {}
        for layer in self.layers:
            if layer.norm is not None:
                place = (layer.place.network or "", layer.place.block)
                squares[place] = squares.get(place, 0.0) + layer.norm**2
        return {place: math.sqrt(square) for place, square in squares.items()}

    @cached_property
    def training(self) -> TrainingSummary:
        """What its metadata says of its training."""
        return training_summary(self.metadata)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of it, in words."""
        return tuple(_notes(self))


@dataclass(frozen=True)
class AdapterNames:
    """What the names in an adapter file tell.

    Attributes:
        format: as of :class:`AdapterInfo`.
        needs_base: whether only the base can tell which layers they mean.
    """

    format: str
    needs_base: bool

    @classmethod
    def of(cls, names: Collection[TensorName]) -> AdapterNames:
        """Return what names tell."""
        layers = {name.layer: name.format for name in names}
        needs_base = any(own == "kohya" or place_of(layer, own).network is None for layer, own in layers.items())
        return cls(", ".join(sorted(set(layers.values()))), needs_base)


@opens_paths
def read_adapter_names(path: Path) -> AdapterNames:
    """Return what the names in an adapter file tell; no number of it is read.

    Raises:
        UserError: the file is none, is broken, or holds a tensor nobody asked for.
    """
    names: list[TensorName] = []
    for part, network in files_in(path).items():
        with open_tensors(part) as file:
            names += read_names(file, network, []).values()
    return AdapterNames.of(names)


def hash_note(info: AdapterInfo) -> str | None:
    """Return what a user should know of the hash in a file's metadata; None: it is the file's, or there is none."""
    recorded = info.metadata.get(_RECORDED_HASH, "").removeprefix("0x").lower()
    if recorded in ("", info.hashes.data_sha256):
        return None
    return (
        f"{_RECORDED_HASH} in its metadata is {recorded[:12]!r}, and its numbers' is {info.hashes.data_sha256[:12]}: "
        "A1111 and Forge write the first into pictures, Civitai knows the second"
    )


def _notes(info: AdapterInfo) -> Iterator[str]:
    if (note := hash_note(info)) is not None:
        yield note
    if any(layer.method == "DoRA" for layer in info.layers):
        yield "the norms of a DoRA are those of (alpha/r) B A, for its delta W depends on the base"
    yield from map(str, info.left_out)
    if zero := sum(layer.norm == 0 for layer in info.layers):
        yield f"{zero} of its {info.targets} layers change nothing: their B A is zero"


@opens_paths
def info(path: Path) -> AdapterInfo:
    """Sum up an adapter file; it is read whole, with all of ``load``'s checks that need no base.

    Raises:
        UserError: as of ``load``.
    """
    with ExitStack() as stack:
        files = [(stack.enter_context(open_tensors(file)), network) for file, network in files_in(path).items()]
        hashes = stack.enter_context(hashing({file.path: file.data_start for file, _ in files}))
        parts = [_read(file, network) for file, network in files]
        with readable(path):
            found = hashes()
    headers = [file.header for file, _ in files]
    shapes = {name: entry.shape for header in headers for name, entry in header.tensors.items()}
    metadata = {key: value for header in headers for key, value in header.metadata.items()}
    names = AdapterNames.of([name for part in parts for name in part.names])
    layers = tuple(layer for part in parts for layer in part.layers)
    return AdapterInfo(
        format=names.format,
        family=family_of(shapes, metadata),
        tensors=sum(len(header.tensors) for header in headers),
        layers=layers,
        needs_base=names.needs_base,
        dtypes=_dtypes(headers),
        size_bytes=sum(file.data_start + file.header.data_bytes for file, _ in files),
        hashes=found,
        metadata=free_metadata(metadata),
        left_out=tuple(left for part in parts for left in part.left_out),
    )


class _Part(NamedTuple):
    """What is in one of an adapter's files: what its names say, its layers, and what is no part of the adapter."""

    names: Collection[TensorName]
    layers: tuple[LayerInfo, ...]
    left_out: list[LeftOut]


def _read(file: TensorsFile, network: str | None) -> _Part:
    left_out: list[LeftOut] = []
    names = read_names(file, network, left_out)
    return _Part(names.values(), _layers(file, names), left_out)


def read_names(
    file: TensorsFile, network: str | None = None, left_out: list[LeftOut] | None = None
) -> dict[str, TensorName]:
    """Return what each tensor's name in an open file says.

    Args:
        file: the file.
        network: that it is of, where its folder tells; its metadata may tell as well. peft's names do not.
        left_out: is given what is no part of the adapter; None: a file with such tensors is refused.

    Raises:
        UserError: a tensor is no part of an adapter of a method that is read, or its numbers are no floats.
    """
    shapes = {name: entry.shape for name, entry in file.header.tensors.items()}
    with located_at(file.path):
        beside = left_out_by_name(shapes)
        others = {name for each in beside for name in each.names} | set(scales_of(shapes).values())
        if len(others) == len(shapes):
            beside, others = [], set()
        parsed = {name: found for name, found in parse_names(shapes).items() if name not in others}
        refuse_foreign(shapes, [name for name in parsed if parsed[name] is None])
        names = require_known(parsed)
        leave_out(beside, left_out)
    check_floating(file.header, names, file.path)
    return _in_network(file.header.metadata.get(NETWORK_KEY, network), names)


def _in_network(network: str | None, names: dict[str, TensorName]) -> dict[str, TensorName]:
    """Return what names say, with the network that they are of where they lack it, as peft's do."""
    if network not in NETWORKS:
        return names
    lacking = {n for n, own in names.items() if own.format == "peft" and place_of(own.layer, "peft").network is None}
    return {n: replace(own, layer=f"{network}.{own.layer}") if n in lacking else own for n, own in names.items()}


def free_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a file's metadata without the format's own and ours."""
    return {key: value for key, value in metadata.items() if key not in _FORMAT_KEYS | {TENSORS_HASH}}


@contextmanager
def located_at(path: Path) -> Iterator[None]:
    """Say of which file an error is that is raised inside."""
    try:
        yield
    except UserError as error:
        if error.where == str(path):
            raise
        what = error.what if error.where is None else f"{error.where}: {error.what}"
        raise UserError(what, code=error.code, where=path, remedy=error.remedy) from error


def _layers(file: TensorsFile, names: Mapping[str, TensorName]) -> tuple[LayerInfo, ...]:
    """Return a file's layers, by torch only if there is one of another method than LoRA and DoRA."""
    with located_at(file.path):
        settings_of = settings_beside(file.path, names.values(), file.header.metadata)
        parts = by_layer(names)
        methods = {layer: method_of(layer, own).method for layer, own in parts.items()}
    known = _Known(
        names,
        {name.layer: place_of(name.layer, name.format) for name in names.values()},
        parts,
        settings_of,
        METADATA_KEY if METADATA_KEY in file.header.metadata else CONFIG_NAME,
    )
    needs_torch = bool(set(methods.values()) - _WITHOUT_TORCH) or _needs_torch(file, parts)
    found = (_torch_layers if needs_torch else _lora_layers)(file, known)
    return tuple(sorted(found, key=lambda layer: _natural(layer.name)))


def _needs_torch(file: TensorsFile, parts: Mapping[str, Mapping[str, str]]) -> bool:
    """Return whether a file has what is folded into A and B by torch: further parts, scales, an alpha for each row."""
    entries = file.header.tensors
    has_others = any(set(own) - _PARTS_WITHOUT_TORCH for own in parts.values())
    alphas = [own["alpha"] for own in parts.values() if "alpha" in own]
    return has_others or bool(scales_of(entries)) or any(math.prod(entries[name].shape) != 1 for name in alphas)


@dataclass(frozen=True)
class _Known:
    """What names and configs tell of a file's layers.

    Attributes:
        names: what each tensor's name says.
        places: where each is.
        parts: names of each one's tensors by part.
        settings_of: what the config says of one.
        config: where the config is.
    """

    names: Mapping[str, TensorName]
    places: Mapping[str, LayerPlace]
    parts: Mapping[str, Mapping[str, str]]
    settings_of: Callable[[str], Settings | None]
    config: str

    def strength_in(self, layer: str) -> tuple[str, ...]:
        """Return where a layer's strength is told."""
        told = {"alpha": "alpha" in self.parts[layer], self.config: self.settings_of(layer) is not None}
        return tuple(place for place, tells in told.items() if tells)


def _lora_layers(file: TensorsFile, known: _Known) -> list[LayerInfo]:
    """Return the layers of a file that has LoRA and DoRA alone."""

    def summarise(layer: str) -> LayerInfo:
        own = known.parts[layer]
        with located_at(file.path), in_layer(layer):
            method, settings = method_of(layer, own), known.settings_of(layer)
            check_settings(method, settings or {})
            found = summarise_lora(file, own, settings, dora=method.method == "dora")
            told = known.strength_in(layer)
        sizes = {"rank": found.rank, "alpha": found.alpha}
        return LayerInfo(layer, known.places[layer], method.title, sizes, found.parameters, told, found.norm)

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(summarise, known.parts))


def _torch_layers(file: TensorsFile, known: _Known) -> list[LayerInfo]:
    """Return the layers of a file of any method."""
    from veneer.weights.file import read_layers

    return [
        LayerInfo(
            name,
            known.places[name],
            adapter.method.title,
            adapter.hyperparameters,
            adapter.parameter_count,
            known.strength_in(name),
            math.sqrt(adapter.squared_norm()) if adapter.method.is_mergeable and adapter.method.is_additive else None,
        )
        for name, adapter in read_layers(file, known.names).items()
    ]


def _dtypes(headers: Iterable[Header]) -> dict[str, int]:
    """Return how many numbers there are of each type, the most frequent first."""
    counts: Counter[str] = Counter()
    for header in headers:
        for entry in header.tensors.values():
            counts[entry.dtype] += math.prod(entry.shape)
    return dict(counts.most_common())


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key to sort by in which numbers count as such: block 2 before block 10."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)]
