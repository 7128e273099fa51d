"""Adapter files: written in any format, read whichever tool wrote them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from veneer.adapter.protocol import AdapterWeights, LayerAdapter
from veneer.errors import UserError
from veneer.files import atomic_stream, atomic_write, is_pickle, opens_paths
from veneer.weights.adapter_path import FILE_NAME, file_in, files_in
from veneer.weights.formats.diffusers import DIFFUSERS
from veneer.weights.formats.folding import read_record, unfold
from veneer.weights.formats.foreign import Shapes, family_of
from veneer.weights.formats.layers import LayerIndex, check_once, require_base
from veneer.weights.formats.left_out import LeftOut
from veneer.weights.formats.names import TensorName, memory_path
from veneer.weights.formats.parts import by_layer
from veneer.weights.formats.places import place_of
from veneer.weights.formats.protocol import BaseNames, Format, FormatFile, KeyNames
from veneer.weights.formats.registry import FORMATS, METADATA_KEYS
from veneer.weights.formats.scales import scaled, scales_of
from veneer.weights.formats.strength import settings_beside
from veneer.weights.formats.tensors import adapter_of
from veneer.weights.header import TensorEntry
from veneer.weights.kohya_hashes import with_file_hashes
from veneer.weights.metadata import LABELLED, completed
from veneer.weights.safetensors import (
    check_finite,
    decode,
    dtype_name,
    encoded_bytes,
    encoded_pieces,
    open_tensors,
    read_tensors,
)
from veneer.weights.summary import TENSORS_HASH, AdapterInfo, free_metadata, info, located_at, read_names
from veneer.weights.tensors_file import TensorsFile

__all__ = [
    "DTYPES",
    "FILE_NAME",
    "AdapterFile",
    "AdapterInfo",
    "dtype_named",
    "family_of_file",
    "file_in",
    "format_named",
    "info",
    "load",
    "outline",
    "read_layers",
    "render",
    "rendered_bytes",
    "save",
    "tensor_hashes",
]


@dataclass(frozen=True)
class AdapterFile:
    """An adapter and what is said about it.

    Attributes:
        weights: by full dotted path, network's prefix first.
        metadata: free text by key, e.g. the base's name.
    """

    weights: AdapterWeights
    metadata: Mapping[str, str] = field(default_factory=dict)


Piece = bytes | memoryview
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What an adapter's numbers may be written in; every program reads these."""


@opens_paths
def save(
    adapter: AdapterFile,
    path: Path,
    format: str = DIFFUSERS.name,  # what users call it
    base: BaseNames | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write an adapter in a format; equal adapters give equal bytes.

    Args:
        adapter: the adapter.
        path: the file, or the folder of a format of several files.
        format: a key of ``FORMATS``.
        base: whose layers the adapter is of; ``kohya`` and ``comfy`` need it, for their names are made of its own.
        dtype: of the tensors, one of ``DTYPES``; None: their own. An alpha is always written as it is.

    Returns:
        The SHA-256 of the file; of several, of all in the order of their names.

    Raises:
        UserError: the adapter is empty or holds NaN or infinity, also after it was rounded to ``dtype``; the format has
            no place for it; or the place cannot be written to, or would not be read under its name.
    """
    if not adapter.weights:
        raise UserError("the adapter is empty", code="weights.empty", where=path)
    if is_pickle(path):
        what = f"{path.suffix} is a pickle's ending, and no pickle is read"
        raise UserError(what, code="weights.pickle", where=path, remedy="use .safetensors")
    digest = hashlib.sha256()
    for file in _written(adapter, path, format_named(format), base, dtype):
        metadata = _checked_metadata(adapter, file, path, format, base)
        for name, text in file.texts.items():
            atomic_write(Path(file.name).with_name(name), text.encode())
        atomic_stream(Path(file.name), _digested(encoded_pieces(file.tensors, metadata), digest))
    return digest.hexdigest()


def _checked_metadata(
    adapter: AdapterFile, file: FormatFile, path: Path, format: str, base: BaseNames | None
) -> dict[str, str]:
    """Return a file's whole metadata, once its numbers are known to be finite; two hashes are taken side by side."""
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(_tensors_hash, file.tensors, {**adapter.metadata, **file.metadata})
        check_finite(file.tensors, path)
        said = _with_said(adapter, file, path, format, base).metadata
    return {**said, **file.metadata, TENSORS_HASH: digest.result()}


def _digested(pieces: Iterable[Piece], digest: Any) -> Iterator[Piece]:
    """Yield pieces, once they are in a digest as well."""
    for piece in pieces:
        digest.update(piece)
        yield piece


def _with_said(adapter: AdapterFile, file: FormatFile, path: Path, format: str, base: BaseNames | None) -> AdapterFile:
    """Return the adapter with what a format's readers look for in the metadata."""
    if format not in LABELLED:
        return adapter
    labels = None if base is None else base.labels
    said = completed(adapter.metadata, adapter.weights, name=path.stem, labels=labels)
    return replace(adapter, metadata=with_file_hashes(file.tensors, said))


def format_named(name: str) -> Format:
    """Return the format of a name.

    Raises:
        UserError: there is none.
    """
    if name not in FORMATS:
        what, remedy = f"{name!r:.40} is no format of adapter files", f"use {', '.join(FORMATS)}"
        raise UserError(what, code="weights.unknown_format", remedy=remedy)
    return FORMATS[name]


def _written(
    adapter: AdapterFile, path: Path, format: Format, base: BaseNames | None, dtype: torch.dtype | None
) -> list[FormatFile]:
    """Return an adapter's files in a format, each with its whole path for a name, in the order of the names.

    Raises:
        UserError: the format has no place for the adapter, or such a dtype is not written.
    """
    if dtype not in (None, *DTYPES):
        what = f"an adapter is not written in {dtype}: not every program reads that"
        remedy = f"use {', '.join(map(dtype_name, DTYPES))}"
        raise UserError(what, code="weights.unwritten_dtype", where=path, remedy=remedy)
    files, own = format.write(adapter.weights, base, path.stem), Path(format.file_name(path.stem))
    named = [replace(file, name=str(path / Path(file.name).relative_to(own))) for file in files]
    return [replace(file, tensors=_cast(file.tensors, dtype)) for file in sorted(named, key=lambda file: file.name)]


def dtype_named(name: str | None) -> torch.dtype | None:
    """Return the dtype of a name, such as ``float16``, in which an adapter may be written; None for None.

    Raises:
        UserError: there is none.
    """
    found = {dtype_name(dtype): dtype for dtype in DTYPES}
    if name is None or name in found:
        return found.get(name or "")
    what = f"an adapter is not written in {name:.40}: not every program reads that"
    raise UserError(what, code="weights.unwritten_dtype", remedy=f"use {', '.join(found)}")


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return tensors in a dtype, but numbers such as alpha as they are."""
    return {name: tensor.to(dtype) if dtype and tensor.ndim else tensor for name, tensor in tensors.items()}


def render(adapter: AdapterFile) -> bytes:
    """Return the bytes that ``save`` writes, with a hash of the tensors and their strength among the metadata."""
    (file,) = DIFFUSERS.write(adapter.weights)
    return _content(adapter, file)


def _content(adapter: AdapterFile, file: FormatFile) -> bytes:
    return b"".join(encoded_pieces(file.tensors, _metadata(adapter, file)))


def _metadata(adapter: AdapterFile, file: FormatFile) -> dict[str, str]:
    metadata = {**adapter.metadata, **file.metadata}
    return {**metadata, TENSORS_HASH: _tensors_hash(file.tensors, metadata)}


def rendered_bytes(adapter: AdapterFile, format: str = DIFFUSERS.name, base: BaseNames | None = None) -> int:
    """Return how many bytes ``save`` writes; the weights need have no numbers.

    Of formats whose readers look for facts of the training, these facts are not counted.
    """
    digest = hashlib.sha256().hexdigest()
    sizes = [
        encoded_bytes(file.tensors, {**adapter.metadata, **file.metadata, TENSORS_HASH: digest})
        + sum(len(text.encode()) for text in file.texts.values())
        for file in format_named(format).write(adapter.weights, base)
    ]
    return sum(sizes)


def tensor_hashes(path: Path) -> tuple[str | None, str]:
    """Return the hash of tensors and strength that a file records, None if it records none, and the one that it has.

    Raises:
        UserError: the file cannot be read.
    """
    tensors, metadata = decode(file_in(path))
    return metadata.get(TENSORS_HASH), _tensors_hash(tensors, metadata)


def _tensors_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the hash of tensors and of what metadata say of them; what is said of the adapter does not count."""
    own = {key: metadata[key] for key in METADATA_KEYS if key in metadata}
    digest = hashlib.sha256()
    for piece in encoded_pieces(tensors, own):
        digest.update(piece)
    return digest.hexdigest()


@opens_paths
def load(
    path: Path,
    networks: Mapping[str, nn.Module] | None = None,
    key_names: KeyNames | None = None,
    *,
    left_out: list[LeftOut] | None = None,
) -> AdapterFile:
    """Read an adapter, whichever tool named its tensors, each one accounted for.

    Args:
        path: the file, a folder with one of the usual name, or one with a folder of peft's for each network.
        networks: the base's, by prefix. kohya's names, and peft's (which are of one network and do not say which), mean
            something only beside a base's.
        key_names: what files call the base's layers; by default what its family gives with the networks.
        left_out: is given what of the file is known, but no part of the adapter that is read, such as embeddings of new
            words beside it, or layers of a text encoder that the base does not have; None: such a file is refused.

    Raises:
        UserError: the file is none, is broken, holds NaN or infinity, a tensor nobody asked for, half an adapter or
            another method's, or is of another base.
    """
    content = _read(path, left_out)
    with located_at(path):
        if networks is None:
            weights = _without_base(content)
        else:
            weights = _in_base(content, BaseNames.of(networks, key_names), left_out)
    return AdapterFile(weights, free_metadata(content.metadata))


def _path_without_base(layer: str, format_name: str) -> str:
    """Return the full path that a file's name for a layer is; names with underscores are none.

    Raises:
        UserError: it takes a base to tell.
    """
    if format_name == "kohya" or place_of(layer, format_name).network is None:
        require_base(None, format_name, [layer])
    return memory_path(layer)


def _in_base(content: _Content, base: BaseNames, left_out: list[LeftOut] | None) -> dict[str, LayerAdapter]:
    """Return the adapter of each of the base's layers, by its full path, once each is known to fit.

    Raises:
        UserError: a name means none of the base's layers, or several, or an adapter is of another size.
    """
    index = LayerIndex(base)
    try:
        return index.place(content.layers, None, left_out)
    except UserError:  # once more, for the message to say of which family the file is
        return index.place(content.layers, family_of(content.shapes, content.metadata), left_out)


def _without_base(content: _Content) -> dict[str, LayerAdapter]:
    """Return the adapter of each layer by its full path, as far as a file's names tell it.

    Raises:
        UserError: it takes a base to tell.
    """
    paths = {layer: _path_without_base(layer, content.formats[layer]) for layer in content.layers}
    check_once(paths.values())
    return {paths[layer]: adapter for layer, adapter in content.layers.items()}


@opens_paths
def outline(path: Path) -> dict[str, LayerAdapter]:
    """Return an adapter's layers, by the file's names for them, without its numbers, which are on the meta device.

    Alpha and such are 1, for they are numbers too; what a config says beside the tensors is not asked.

    Raises:
        UserError: the file is none, is broken, or holds a tensor nobody asked for, half an adapter or another method's.
    """
    path = file_in(path)
    with open_tensors(path) as file, located_at(path):
        entries = file.header.tensors
        names = read_names(file, left_out=[])
        tensors = {name: _without_numbers(entries[name]) for name in names}
        parts = {layer: {part: tensors[name] for part, name in own.items()} for layer, own in by_layer(names).items()}
        return {layer: adapter_of(layer, own, lambda _: None) for layer, own in parts.items()}


@opens_paths
def family_of_file(path: Path) -> str | None:
    """Return the family of bases that an adapter file is of, by names, shapes or metadata; None: it is unknown.

    Raises:
        UserError: the file is none, or is broken.
    """
    with open_tensors(file_in(path)) as file:
        return family_of({name: entry.shape for name, entry in file.header.tensors.items()}, file.header.metadata)


def _without_numbers(entry: TensorEntry) -> Tensor:
    is_number = math.prod(entry.shape) == 1
    return torch.ones(entry.shape) if is_number else torch.empty(entry.shape, dtype=torch.float32, device="meta")


@dataclass(frozen=True)
class _Content:
    """An adapter file, read and sorted by the file's names for layers.

    Attributes:
        layers: each layer's adapter.
        formats: the format whose names each layer's are like.
        shapes: of the tensors by their names.
        metadata: of the header.
    """

    layers: Mapping[str, LayerAdapter]
    formats: Mapping[str, str]
    shapes: Shapes
    metadata: Mapping[str, str]


def _read(path: Path, left_out: list[LeftOut] | None) -> _Content:
    """Read an adapter; one of several files in peft's format is read as one."""
    parts = [_read_file(file, network, left_out) for file, network in files_in(path).items()]
    if len(parts) == 1:
        return parts[0]
    layers = {layer: adapter for part in parts for layer, adapter in part.layers.items()}
    formats = {layer: name for part in parts for layer, name in part.formats.items()}
    shapes = {name: shape for part in parts for name, shape in part.shapes.items()}
    metadata = {key: value for part in parts for key, value in part.metadata.items()}
    return _Content(layers, formats, shapes, metadata)


def _read_file(path: Path, network: str | None, left_out: list[LeftOut] | None) -> _Content:
    """Read a file; its names are looked at before its numbers, so that what is no adapter is not read whole.

    Args:
        path: of the file.
        network: that the file is of, if its names do not say and its folder does.
        left_out: as of :func:`load`.
    """
    with open_tensors(path) as file:
        metadata = file.header.metadata
        shapes = {name: entry.shape for name, entry in file.header.tensors.items()}
        names = read_names(file, network, left_out)
        layers = read_layers(file, names)
    return _Content(layers, {name.layer: name.format for name in names.values()}, shapes, metadata)


def read_layers(file: TensorsFile, names: Mapping[str, TensorName]) -> dict[str, LayerAdapter]:
    """Return the adapter of each layer of an open file, by the file's own names for layers.

    Args:
        file: the file.
        names: what :func:`read_names` said of it.

    Raises:
        UserError: as of :func:`load`.
    """
    scales = scales_of(file.header.tensors)
    tensors = read_tensors(file, [*names, *scales.values()])
    with located_at(file.path):
        tensors |= {name: scaled(tensors[name], tensors[scale], name) for name, scale in scales.items()}
        return _adapters(file.path, names, file.header.metadata, tensors)


def _adapters(
    path: Path, names: Mapping[str, TensorName], metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> dict[str, LayerAdapter]:
    settings_of = settings_beside(path, names.values(), metadata)
    parts = {layer: {part: tensors[name] for part, name in own.items()} for layer, own in by_layer(names).items()}
    record = read_record(metadata)
    return {layer: unfold(adapter_of(layer, own, settings_of), record.get(layer)) for layer, own in parts.items()}
