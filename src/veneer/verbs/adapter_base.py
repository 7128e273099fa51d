"""The layers of an adapter's base, which a file's names mean something beside, without the base's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from veneer.adapter.protocol import LayerAdapter
from veneer.config.load import load_config
from veneer.errors import UserError
from veneer.family.abstract import Config, read_configs
from veneer.family.file_content import header
from veneer.family.libraries import one_line_errors, silence_libraries
from veneer.family.pipeline_folder import INDEX
from veneer.family.published import PUBLISHED, read_published
from veneer.family.registry import Source, family_class, find
from veneer.files import opens_paths
from veneer.run.folder import config_beside
from veneer.weights.file import family_of_file, outline
from veneer.weights.formats.layers import LayerIndex
from veneer.weights.formats.protocol import BaseNames

__all__ = ["base_names", "published_names"]

_NATIVE = "model.diffusion_model."
"""What begins the names of the denoiser's weights in a single file."""


@opens_paths
def base_names(file: Path, base: str | None = None) -> BaseNames | None:
    """Return the layers that an adapter file's names are of; no weight of the base is read.

    They are those of ``base``; else of the base in the config of the run that the file lies in; else of the first
    published architecture that has all of the file's layers, in their shapes.

    Args:
        file: the adapter, or the folder of its run.
        base: its base; also the name of a published architecture.

    Returns:
        None: no base is named, and no published architecture fits.

    Raises:
        UserError: ``base`` is none, or the file cannot be read.
    """
    if base is not None:
        return _names_of(base)
    if (config := config_beside(file)).is_file():
        try:
            return _names_of(load_config(config).base)
        except UserError:  # it is not on this machine any more; the names may tell
            pass
    return _fitting(file)


def _names_of(base: str) -> BaseNames:
    if base in PUBLISHED and not Path(base).exists():
        return published_names(base)
    source = find(base)
    with silence_libraries(), one_line_errors(source.base, "its parts do not fit together: take all from one base"):
        if source.is_file:
            return _names_in_file(source)
        return _names_in(str(source.place or source.base), source)


def _names_in_file(source: Source) -> BaseNames:
    """Return the layers of a single file: of the folder that it lies in, else of the architecture it is as large as.

    Raises:
        UserError: there is neither.
    """
    assert source.place is not None
    if (source.place.parent / INDEX).is_file():
        return _names_in(str(source.place.parent), source)
    size = _denoiser_size(source.place)
    for name in PUBLISHED:
        if read_published(name).pipeline == source.pipeline and _size_of(published_names(name)) == size:
            return published_names(name)
    what = "is a single file of an architecture that has no name here, and there are no configurations beside it"
    raise UserError(what, code="base.no_configs", where=source.base, remedy="name a diffusers folder of the same base")


def _denoiser_size(file: Path) -> int:
    """Return how many weights the denoiser in a single file has."""
    tensors = header(file).tensors
    native = {name: entry for name, entry in tensors.items() if name.startswith(_NATIVE)}
    return sum(math.prod(entry.shape) for entry in (native or tensors).values())


def _size_of(base: BaseNames) -> int:
    (denoiser,) = (network for name, network in base.networks.items() if not name.startswith("text_encoder"))
    return sum(parameter.numel() for parameter in denoiser.parameters())


def _fitting(file: Path) -> BaseNames | None:
    """Return the first published architecture that has a file's layers, those of the file's own family first."""
    layers, origin = outline(file), family_of_file(file)
    for name in sorted(PUBLISHED, key=lambda name: not read_published(name).title.startswith(origin or " ")):
        if _fits(layers, published_names(name)):
            return published_names(name)
    return None


def _fits(layers: Mapping[str, LayerAdapter], base: BaseNames) -> bool:
    try:
        LayerIndex(base).place(layers)
    except UserError:
        return False
    return True


@cache
def published_names(name: str) -> BaseNames:
    """Return the layers of an architecture of a name in ``PUBLISHED``."""
    published = read_published(name)
    return _abstract(published.pipeline, published.parts)


def _names_in(place: str, source: Source) -> BaseNames:
    """Return the layers of a base in diffusers' layout: a folder, or a hub id."""
    return _abstract(source.pipeline, read_configs(place, source.family.config_names()))


def _abstract(pipeline: str, configs: Mapping[str, Config]) -> BaseNames:
    with silence_libraries():
        return BaseNames.of(family_class(pipeline).abstract(configs, torch.float32).networks)
