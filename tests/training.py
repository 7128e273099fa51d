"""Small runs on the tiny base, for the tests of training and of what comes after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tests.bases import Defaults
from veneer.config.load import build_config, resolve
from veneer.config.schema import RunConfig
from veneer.data.preflight import Dataset, survey
from veneer.family.protocol import Family
from veneer.rng import torch_generator
from veneer.train.events import Event, StepDone
from veneer.train.loop import Trainer, train
from veneer.train.step import train_step


def tiny_config(pictures: Path, **sections: Any) -> RunConfig:
    """Three steps on two pictures each, at the tiny base's 16 pixels; ``sections`` are laid over it key by key."""
    values: dict[str, Any] = {
        "base": "tiny",
        "data": {"sources": [{"path": str(pictures)}], "held_out": 0.25},
        "train": {"max_steps": 3, "batch_size": 2, "learning_rate": 0.01},
    }
    return resolve(build_config(laid_over(values, sections), "test"), Defaults(16))


def laid_over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings, the second over the first key by key."""
    both = {name: laid_over(under[name], over[name]) for name in over if isinstance(under.get(name), dict)}
    return {**under, **over, **both}


def write_noise_pictures(folder: Path) -> Path:
    """Six pictures that are neither square nor symmetric; their trigger stands for captions."""
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


SHAPES = ((16, 16), (40, 20), (20, 40), (32, 30), (12, 9))
"""Widths and heights of pictures, the last of which is smaller than 16 x 16 pixels."""


def write_mixed_pictures(folder: Path, count: int = 10) -> Path:
    """Pictures of several shapes, each with a caption of its own; at 16 pixels they have five sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        width, height = SHAPES[number % len(SHAPES)]
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"thing {number}")
    return folder


def tiny_run(config: RunConfig, family: Family, dataset: Dataset | None = None) -> list[Event]:
    """All events of a run; the family has its bits back."""
    return list(train(config, family, dataset or survey(config.data)))


def losses_of(events: list[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, StepDone)]


@contextmanager
def trainer_on(config: RunConfig, family: Family, moved: bool = True) -> Iterator[Trainer]:
    """A trainer whose B is not zero any more (unless ``moved`` is false), so that every factor has a gradient."""
    trainer = Trainer(config, family, survey(config.data))
    if moved:
        move(trainer)
    try:
        yield trainer
    finally:
        trainer.close()


def move(trainer: Trainer) -> None:
    with torch.no_grad():
        for name, parameter in trainer.injection.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch_generator("moved", name)), alpha=0.05)


class Recorder(torch.optim.Optimizer):
    """Remembers the gradients of its last step and changes nothing."""

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        super().__init__(list(named.values()), {})
        self.named = named
        self.gradients: dict[str, Tensor] = {}

    def step(self, closure: Any = None) -> Any:
        self.gradients = {name: p.grad.clone() for name, p in self.named.items() if p.grad is not None}


def gradients_of(config: RunConfig, family: Family, step: int = 0) -> dict[str, Tensor]:
    """The adapter's gradients in one step."""
    with trainer_on(config, family) as trainer:
        recorder = Recorder(dict(trainer.injection.named_parameters()))
        train_step(replace(trainer.context, optimizer=recorder), step, trainer.batches.micro_batches(step))
        return recorder.gradients


def bits_of(networks: Any) -> dict[str, Tensor]:
    """Copies of every weight."""
    return {f"{p}.{n}": w.detach().clone() for p, net in networks.items() for n, w in net.state_dict().items()}
