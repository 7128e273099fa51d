"""What the tests of studies share: a recorder of events, and trainings that cost next to nothing."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.config.load import write_config
from veneer.config.schema import RunConfig
from veneer.family.loading import load_base
from veneer.family.protocol import Family
from veneer.rng import torch_generator
from veneer.run.events import Callback
from veneer.run.folder import CONFIG
from veneer.run.preparation import TrainingInputs
from veneer.study import context, results, trial
from veneer.weights.file import FILE_NAME, AdapterFile, save

__all__ = ["EventRecorder", "draw_adapter", "lighten", "shared_base"]


def lighten(patch: pytest.MonkeyPatch) -> None:
    """Spare a test what others are about: plots, the heap swept before each training, a base read anew each time.

    A study leaves its base as it was, so all of them can share one; ``test_study_run.py`` sees that it does.
    """
    patch.setattr(results, "plot", lambda table, title: b"a plot")
    patch.setattr(trial, "PeakMemory", lambda device: SimpleNamespace(bytes=lambda: 10**8))
    patch.setattr(context, "load_base", shared_base)


@lru_cache(maxsize=4)
def shared_base(name: str) -> Family:
    """A base that is read once for all tests."""
    return load_base(name)


class EventRecorder:
    """A callback that records events."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def __call__(self, event: object) -> None:
        self.events.append(event)

    def of_type(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def draw_adapter(inputs: TrainingInputs, callback: Callback) -> tuple[float, int | None]:
    """Stands for a training where a test asks what is trained, not how: an adapter drawn by its seed, and its files."""
    run, family, config = inputs.run, inputs.family, inputs.run.config
    endings = tuple(f".{target}" for target in config.adapter.target_modules)
    factors = {
        path: _drawn(path, tuple(layer.weight.shape), config)
        for path, layer in layers_of({"unet": family.networks["unet"]}).items()
        if path.endswith(endings)
    }
    config.output.dir.mkdir(parents=True, exist_ok=True)
    write_config(config, config.output.dir / CONFIG)
    save(AdapterFile(factors, run.metadata), config.output.dir / FILE_NAME)
    return 0.5, 10**8


def _drawn(path: str, shape: tuple[int, ...], config: RunConfig) -> LoraFactors:
    rank, generator = config.adapter.rank, torch_generator(config.seed, config.adapter.rank, path)
    down, up = torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator)
    return LoraFactors(down, up * 0.01, config.adapter.alpha or float(rank))
