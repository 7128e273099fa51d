"""The layers of a base, and what files call them, from its configurations: no weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from veneer.errors import UserError
from veneer.family.abstract import Config, read_configs
from veneer.family.base_index import find_index
from veneer.family.file_content import header
from veneer.family.libraries import one_line_errors, silence_libraries
from veneer.family.published import PUBLISHED, is_published, read_published
from veneer.family.registry import Source, family_class, find
from veneer.weights.formats.protocol import BaseNames

__all__ = ["names_of_base", "published_names"]

_NATIVE = "model.diffusion_model."
"""What begins the names of the denoiser's weights in a single file."""


def names_of_base(base: str) -> BaseNames:
    """Return the layers of a base.

    Args:
        base: ``bundled``, a folder, a single file, a hub id, or the name of a published architecture.

    Raises:
        UserError: there is no such base, its configurations do not fit together, or it is a single file of an unknown
            architecture with no configurations beside it.
    """
    if is_published(base):
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
    if find_index(source.place.parent) is not None:
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


@cache
def published_names(name: str) -> BaseNames:
    """Return the layers of an architecture of a name in ``PUBLISHED``."""
    published = read_published(name)
    return _abstract(published.pipeline, published.parts)


def _names_in(place: str, source: Source) -> BaseNames:
    """Return the layers of a base in diffusers' layout: a folder, or a hub id."""
    return _abstract(source.pipeline, read_configs(place, source.family.config_names(), source.family.optional_parts))


def _abstract(pipeline: str, configs: Mapping[str, Config]) -> BaseNames:
    with silence_libraries():
        return BaseNames.of(family_class(pipeline).abstract(configs, torch.float32).networks)
