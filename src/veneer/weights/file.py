"""Adapter files: written in diffusers' format, read in any."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from torch import Tensor, nn

from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.errors import UserError
from veneer.files import atomic_write, is_pickle, open_regular, opens_paths
from veneer.weights.formats.diffusers import DIFFUSERS
from veneer.weights.formats.peft import FILE_NAME as PEFT_NAME
from veneer.weights.formats.protocol import BaseNames, FileContent, Format, KeyNames
from veneer.weights.formats.registry import METADATA_KEYS, format_of
from veneer.weights.safetensors import check_finite, decode, encode, encoded_bytes

__all__ = [
    "FILE_NAME",
    "AdapterFile",
    "AdapterInfo",
    "file_in",
    "info",
    "load",
    "render",
    "rendered_bytes",
    "save",
    "tensor_hashes",
]

FILE_NAME = "pytorch_lora_weights.safetensors"
"""The name that ``load_lora_weights`` looks for in a folder."""

_PIECE = 2**20  # bytes read at a time
_TENSORS_HASH = "veneer.tensors.sha256"
_NO_NAMES: KeyNames = MappingProxyType({})


@dataclass(frozen=True)
class AdapterFile:
    """An adapter and what is said about it.

    Attributes:
        weights: by full dotted path, network's prefix first.
        metadata: free text by key, e.g. the base's name.
    """

    weights: AdapterWeights
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterInfo:
    """The content of an adapter file, as far as it can be told without its base.

    Attributes:
        format: a key of ``FORMATS``, such as diffusers or kohya.
        methods: titles of the methods that occur.
        networks: prefixes of those it changes; none where only the base can tell.
        targets: number of layers it changes.
        hyperparameters: each value that occurs, rising, by the methods' names for them: ``rank``, ``alpha``.
        parameters: how many numbers were trained.
        needs_base: whether only the base can tell which layers the names mean.
        size_bytes: of the file.
        sha256: of the file.
        metadata: without the format's own.
    """

    format: str
    methods: tuple[str, ...]
    networks: tuple[str, ...]
    targets: int
    hyperparameters: Mapping[str, tuple[float, ...]]
    parameters: int
    needs_base: bool
    size_bytes: int
    sha256: str
    metadata: Mapping[str, str]


@opens_paths
def save(adapter: AdapterFile, path: Path) -> str:
    """Write an adapter in diffusers' format; equal adapters give equal bytes.

    Returns:
        The file's SHA-256.

    Raises:
        UserError: the adapter is empty or holds NaN or infinity, or the place cannot be written to, or would not be
            read under its name.
    """
    if not adapter.weights:
        raise UserError("the adapter is empty", code="weights.empty", where=path)
    if is_pickle(path):
        what = f"{path.suffix} is a pickle's ending, and no pickle is read"
        raise UserError(what, code="weights.pickle", where=path, remedy="use .safetensors")
    check_finite(DIFFUSERS.write(adapter.weights)[0], path)
    content = render(adapter)
    atomic_write(path, content)
    return hashlib.sha256(content).hexdigest()


def render(adapter: AdapterFile) -> bytes:
    """Return the bytes that ``save`` writes, with a hash of the tensors and their strength among the metadata."""
    tensors, metadata = DIFFUSERS.write(adapter.weights)
    return encode(tensors, {**adapter.metadata, **metadata, _TENSORS_HASH: _tensors_hash(tensors, metadata)})


def rendered_bytes(adapter: AdapterFile) -> int:
    """Return how many bytes ``render`` makes; the weights need have no numbers."""
    tensors, metadata = DIFFUSERS.write(adapter.weights)
    return encoded_bytes(tensors, {**adapter.metadata, **metadata, _TENSORS_HASH: hashlib.sha256().hexdigest()})


def tensor_hashes(path: Path) -> tuple[str | None, str]:
    """Return the hash of tensors and strength that a file records, None if it records none, and the one that it has.

    Raises:
        UserError: the file cannot be read.
    """
    tensors, metadata = decode(file_in(path))
    own = {key: metadata[key] for key in DIFFUSERS.metadata_keys if key in metadata}
    return metadata.get(_TENSORS_HASH), _tensors_hash(tensors, own)


def _tensors_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return hashlib.sha256(encode(tensors, metadata)).hexdigest()


@opens_paths
def load(path: Path, networks: Mapping[str, nn.Module] | None = None, key_names: KeyNames = _NO_NAMES) -> AdapterFile:
    """Read an adapter of any format in ``FORMATS``, each tensor accounted for.

    Args:
        path: the file, or a folder with one of the usual name.
        networks: the base's, by prefix. kohya's names, and peft's (which are of one network and do not say which), mean
            something only beside a base's.
        key_names: what files call the base's layers, as its family gives them.

    Raises:
        UserError: the file is a pickle, is broken, holds NaN or infinity, a tensor nobody asked for, or half an
            adapter.
    """
    path = file_in(path)
    file_format, content, layers = _read(path)
    base = None if networks is None else BaseNames(networks, key_names)
    with _located_at(path):
        paths = file_format.paths(list(layers), base)
        if twice := [path for path, count in Counter(paths.values()).items() if count > 1]:
            raise UserError(f"has {twice[0]} twice, under two names", code="weights.layer_twice")
    return AdapterFile({paths[layer]: adapter for layer, adapter in layers.items()}, _free(content.metadata))


@opens_paths
def info(path: Path) -> AdapterInfo:
    """Sum up an adapter file; it is read whole, with all of :func:`load`'s checks that need no base.

    Raises:
        UserError: as of :func:`load`.
    """
    path = file_in(path)
    file_format, content, layers = _read(path)
    size, digest = _size_and_hash(path)
    return AdapterInfo(
        format=file_format.name,
        methods=tuple(sorted({adapter.method.title for adapter in layers.values()})),
        networks=tuple(sorted({network for layer in layers if (network := file_format.network_of(layer))})),
        targets=len(layers),
        hyperparameters=_hyperparameters(list(layers.values())),
        parameters=sum(adapter.parameter_count for adapter in layers.values()),
        needs_base=_needs_base(file_format, list(layers)),
        size_bytes=size,
        sha256=digest,
        metadata=_free(content.metadata),
    )


def _size_and_hash(path: Path) -> tuple[int, str]:
    """Return how many bytes a file has, and their SHA-256; it is not held in memory."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
        return file.tell(), digest.hexdigest()


def _hyperparameters(adapters: list[LayerAdapter]) -> dict[str, tuple[float, ...]]:
    values: dict[str, set[float]] = {}
    for adapter in adapters:
        for name, value in adapter.hyperparameters.items():
            values.setdefault(name, set()).add(value)
    return {name: tuple(sorted(each)) for name, each in values.items()}


def _needs_base(file_format: Format, layers: list[str]) -> bool:
    try:
        file_format.paths(layers, None)
    except UserError:
        return True
    return False


def file_in(path: Path) -> Path:
    """Return the adapter file that a path means: itself, or in a folder the one of a usual name.

    Raises:
        UserError: the folder has none.
    """
    if not path.is_dir():
        return path
    for name in (FILE_NAME, PEFT_NAME):
        if (path / name).is_file():
            return path / name
    what = f"holds neither {FILE_NAME} nor {PEFT_NAME}"
    raise UserError(what, code="weights.no_adapter_file", where=path, remedy="name the file itself")


def _read(path: Path) -> tuple[Format, FileContent, dict[str, LayerAdapter]]:
    """Return a file's format, its content, and each layer's adapter by the file's name for the layer."""
    content = FileContent(path, *decode(path))
    file_format = format_of(content.tensors)
    with _located_at(path):
        return file_format, content, file_format.read(content)


def _free(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a file's metadata without the format's own and ours."""
    return {key: value for key, value in metadata.items() if key not in METADATA_KEYS | {_TENSORS_HASH}}


@contextmanager
def _located_at(path: Path) -> Iterator[None]:
    """Say of which file an error is that is raised inside."""
    try:
        yield
    except UserError as error:
        what = error.what if error.where is None else f"{error.where}: {error.what}"
        raise UserError(what, code=error.code, where=path, remedy=error.remedy) from error
