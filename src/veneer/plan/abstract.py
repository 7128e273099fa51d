"""Bases without data: a family's own class over modules of the right shapes, which a plan computes with."""

from __future__ import annotations

from pathlib import Path

import torch

from veneer.config.schema import RunConfig
from veneer.family.abstract import read_configs
from veneer.family.libraries import one_line_errors, silence_libraries
from veneer.family.networks import LoadOptions
from veneer.family.protocol import Family
from veneer.family.published import PUBLISHED, read_published
from veneer.family.registry import family_class, find
from veneer.plan.tracer import MemoryTracer

__all__ = ["abstract_base"]

_WEIGHT_DTYPE = torch.float32
"""What a run holds its base's weights in; ``train.quantization`` changes it afterwards."""


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
    family.use_token_windows(config.data.token_windows)
    return tracer.without_data(family)


def _make_base(config: RunConfig) -> Family:
    if config.base in PUBLISHED and not Path(config.base).exists():
        published = read_published(config.base)
        return family_class(published.pipeline).abstract(published.parts, _WEIGHT_DTYPE)
    source = find(config.base)
    if source.is_file:  # which has no configurations
        return source.load(LoadOptions())
    with one_line_errors(source.base, "its parts do not fit together: take all from one base"):
        configs = read_configs(str(source.place or source.base), source.family.config_names())
        return source.family.abstract(configs, _WEIGHT_DTYPE)
