"""Adapter files: what Veneer writes, and what it reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import AdapterWeights
from veneer.errors import UserError
from veneer.files import atomic_write, is_pickle
from veneer.weights.layouts import DIFFUSERS_KEY, Layout, factors_of, layout_of, network_of, resolve, to_diffusers
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
    "seal",
]

FILE_NAME = "pytorch_lora_weights.safetensors"
"""The name that ``load_lora_weights`` looks for in a folder."""

_PEFT_NAME, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_SEAL = "veneer.tensors.sha256"
_OURS = (DIFFUSERS_KEY, "format", _SEAL)
"""Metadata that belongs to the layout, not to the adapter."""


@dataclass(frozen=True)
class AdapterFile:
    """An adapter and what is told about it.

    Attributes:
        weights: by full dotted path, network's prefix first.
        metadata: free text by key, e.g. the base's name.
    """

    weights: AdapterWeights
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterInfo:
    """What a file holds, as far as it tells without its base.

    Attributes:
        layout: diffusers, peft or kohya.
        networks: prefixes of those it changes; none where only the base can tell.
        targets: layers it changes.
        ranks: each that occurs, rising.
        alphas: the same.
        parameters: numbers in A and B.
        size_bytes: of the file.
        sha256: of the file.
        metadata: without the layout's own.
    """

    layout: Layout
    networks: tuple[str, ...]
    targets: int
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    parameters: int
    size_bytes: int
    sha256: str
    metadata: Mapping[str, str]


def save(adapter: AdapterFile, path: Path) -> str:
    """Write an adapter in diffusers' layout; equal adapters give equal bytes.

    Returns:
        The file's SHA-256.

    Raises:
        UserError: the adapter is empty or holds NaN or infinity, or the place cannot be written to, or would not be
            read under its name.
    """
    if not adapter.weights:
        raise UserError("the adapter is empty", where=path)
    if is_pickle(path):
        raise UserError(
            f"{path.suffix} is a pickle's ending, and no pickle is read", where=path, remedy="use .safetensors"
        )
    check_finite(to_diffusers(adapter.weights)[0], path)
    content = render(adapter)
    atomic_write(path, content)
    return hashlib.sha256(content).hexdigest()


def render(adapter: AdapterFile) -> bytes:
    """The bytes that ``save`` writes, with a hash of the tensors and their strength among the metadata."""
    tensors, layout = _laid_out(adapter)
    return encode(tensors, {**adapter.metadata, **layout, _SEAL: _seal(tensors, layout)})


def rendered_bytes(adapter: AdapterFile) -> int:
    """How many bytes ``render`` makes; the factors need have no numbers."""
    tensors, layout = _laid_out(adapter)
    return encoded_bytes(tensors, {**adapter.metadata, **layout, _SEAL: hashlib.sha256().hexdigest()})


def _laid_out(adapter: AdapterFile) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, config = to_diffusers(adapter.weights)
    return tensors, {DIFFUSERS_KEY: config, "format": "pt"}


def seal(path: Path) -> tuple[str | None, str]:
    """The hash of tensors and strength that a file tells, None if it tells none, and the one that it has.

    Raises:
        UserError: the file cannot be read.
    """
    tensors, metadata = decode(file_in(path))
    layout = {key: metadata[key] for key in (DIFFUSERS_KEY, "format") if key in metadata}
    return metadata.get(_SEAL), _seal(tensors, layout)


def _seal(tensors: Mapping[str, Tensor], layout: Mapping[str, str]) -> str:
    return hashlib.sha256(encode(tensors, layout)).hexdigest()


def load(path: Path, networks: Mapping[str, nn.Module] | None = None) -> AdapterFile:
    """Read an adapter of diffusers', peft's or kohya's layout, each tensor accounted for.

    Args:
        path: the file, or a folder with one of the usual name.
        networks: the base's, by prefix. kohya's names, and peft's (which are of one network and do not say which), mean
            something only beside a base's.

    Raises:
        UserError: the file is a pickle, is broken, holds NaN or infinity, a tensor nobody asked for, or half an
            adapter.
    """
    path = file_in(path)
    layout, raw, metadata = _read(path)
    try:
        return AdapterFile(resolve(raw, layout, networks), metadata)
    except UserError as error:
        raise _at(path, error) from error


def info(path: Path) -> AdapterInfo:
    """Sum up an adapter file; it is read whole, with all of :func:`load`'s checks that need no base."""
    path = file_in(path)
    layout, raw, metadata = _read(path)
    content = path.read_bytes()
    return AdapterInfo(
        layout=layout,
        networks=tuple(sorted({net for layer in raw if (net := network_of(layer, layout))})),
        targets=len(raw),
        ranks=tuple(sorted({each.rank for each in raw.values()})),
        alphas=tuple(sorted({each.alpha for each in raw.values()})),
        parameters=sum(each.down.numel() + each.up.numel() for each in raw.values()),
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        metadata=metadata,
    )


def file_in(path: Path) -> Path:
    """The adapter file that a path means: itself, or in a folder the one of a usual name.

    Raises:
        UserError: the folder has none.
    """
    if not path.is_dir():
        return path
    for name in (FILE_NAME, _PEFT_NAME):
        if (path / name).is_file():
            return path / name
    raise UserError(f"holds neither {FILE_NAME} nor {_PEFT_NAME}", where=path, remedy="name the file itself")


def _read(path: Path) -> tuple[Layout, dict[str, LoraFactors], dict[str, str]]:
    tensors, metadata = decode(path)
    layout = layout_of(list(tensors))
    try:
        factors = factors_of(tensors, layout, _config(path, layout, metadata))
    except UserError as error:
        raise _at(path, error) from error
    return layout, factors, {key: value for key, value in metadata.items() if key not in _OURS}


def _at(path: Path, error: UserError) -> UserError:
    what = error.what if error.where is None else f"{error.where}: {error.what}"
    return UserError(what, where=path, remedy=error.remedy)


def _config(path: Path, layout: Layout, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Where the layout keeps its strengths: nowhere but in the tensors, in the metadata, or in a file beside."""
    if layout == "kohya":
        return None
    if layout == "diffusers":
        return _json(metadata[DIFFUSERS_KEY]) if DIFFUSERS_KEY in metadata else None
    try:
        text = (path.parent / _PEFT_CONFIG).read_bytes().decode("utf-8", "replace")
    except OSError as error:
        remedy = "it tells alpha, and so the adapter's strength"
        raise UserError(f"has no {_PEFT_CONFIG} beside it", remedy=remedy) from error
    return _json(text)


def _json(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"its config is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError("its config is not a JSON object")
    return config
