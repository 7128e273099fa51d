"""Bases without data: a family's own class over modules of the right shapes, which a plan computes with."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from veneer.config.base_name import expert_of
from veneer.config.schema import RunConfig
from veneer.family.abstract import read_configs
from veneer.family.libraries import one_line_errors, silence_libraries
from veneer.family.loading import quantize_text_encoders
from veneer.family.networks import LoadOptions
from veneer.family.protocol import Family
from veneer.family.published import is_published, read_published
from veneer.family.registry import family_class, find
from veneer.family.shards import Shards, weight_files
from veneer.plan.tracer import MemoryTracer

__all__ = ["abstract_base"]

_WEIGHT_DTYPE = torch.float32
"""What a run holds its base's weights in; ``train.quantization`` changes it afterwards."""
_PUBLISHED_DTYPE = torch.bfloat16
"""What large text encoders are published in."""


def abstract_base(config: RunConfig, tracer: MemoryTracer) -> Family:
    """Return a run's base without data, from its configurations if they are enough.

    Args:
        config: the run; ``base`` may be the name of a published architecture.
        tracer: records its weights.

    Raises:
        UserError: the base is not there, of a family that is not known, or its configurations do not fit together.
    """
    with silence_libraries():
        family = _make_base(config)
    return tracer.without_data(family)


def _make_base(config: RunConfig) -> Family:
    if is_published(config.base):
        adapted = frozenset(config.adapter.text_encoders)
        key = (
            config.base,
            expert_of(config.base),
            config.train.text_encoder_quantization,
            adapted,
            config.data.token_windows,
        )
        if _LATEST[0] != key:
            _LATEST[:] = key, _make_published(config)
        return cast(Family, _LATEST[1])
    source = find(config.base)
    if source.is_file:  # which has no configurations
        family = source.load(LoadOptions())
    else:
        with one_line_errors(source.base, "its parts do not fit together: take all from one base"):
            parts = source.family.config_names(), source.family.optional_parts
            configs = read_configs(str(source.place or source.base), *parts)
            family = source.family.abstract(configs, _WEIGHT_DTYPE)
        stored = {name: _stored_dtypes(source.place, name) for name in family.text_encoders}
        family.use_expert(source.expert)
        quantize_text_encoders(family, config, stored)
    family.use_token_windows(config.data.token_windows)
    return family


_LATEST: list[object] = [None, None]
"""The latest published base that was made and what it was made for: all remedies of a run ask for the same one."""


def _make_published(config: RunConfig) -> Family:
    published = read_published(config.base)
    family = family_class(published.pipeline).abstract(published.parts, _WEIGHT_DTYPE)
    family.use_expert(expert_of(config.base))
    quantize_text_encoders(family, config, {name: {_PUBLISHED_DTYPE} for name in family.text_encoders})
    family.use_token_windows(config.data.token_windows)
    return family


def _stored_dtypes(folder: Path | None, name: str) -> set[torch.dtype]:
    """Return the dtypes of a network's numbers in its files; of one that is not here, what published ones have."""
    files = [] if folder is None else weight_files(folder / name)
    if not files or any(file.suffix != ".safetensors" for file in files):
        return {_PUBLISHED_DTYPE}
    return Shards(files).dtypes()
