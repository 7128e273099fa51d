"""Measure what a step waits for its pictures, on the bundled base: the share of the step, with and without workers.

python -m benchmarks.loader               all cases, as a table
python -m benchmarks.loader --turns 2     coarsely

Pictures are JPEGs of 2000 x 1500 pixels with detail, as a camera's are. A step is all of it: pictures, latents, noise,
forward, backward, optimiser. Loading is all of building a batch but what the autoencoder and the text encoder do. The
cases take turns of a few steps each, so that a machine that is busy now and then is so for all; the first step of a
turn is not counted, for its pictures had the others' time to be decoded in.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from benchmarks import models
from veneer.config.load import build_config, resolve
from veneer.data.preflight import survey
from veneer.family.loading import load_run_base
from veneer.family.protocol import Family
from veneer.train.loop import Trainer
from veneer.train.step import train_step

__all__ = ["main"]

_PICTURES = 12
_TURN = 4
_SIZE = 2000, 1500
_CASES: dict[str, dict[str, Any]] = {
    "center, cached": {},
    "random crops, no workers": {"crop": "random", "workers": 0},
    "random crops, 1 thread": {"crop": "random", "workers": 1},
    "random crops, 2 threads": {"crop": "random", "workers": 2},
    "random crops, 2 processes": {"crop": "random", "workers": 2, "worker_type": "process"},
}


@dataclass
class _Case:
    """What was measured of one case: seconds of each step, of loading in it, and of waiting for pixels in that."""

    trainer: Trainer
    steps: list[float] = field(default_factory=list)
    loading: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    encoding: float = 0.0
    pixels: float = 0.0

    number: int = 0

    def turn(self) -> None:
        """Do some steps, of which the first is not counted."""
        for place in range(1 + _TURN):
            self._step()
            if place == 0:
                for times in (self.steps, self.loading, self.waiting):
                    times.pop()

    def _step(self) -> None:
        began, number = time.perf_counter(), self.number
        self.number += 1
        self.encoding = self.pixels = 0.0
        micros = self.trainer.batches.micro_batches(number)
        built = time.perf_counter() - began
        train_step(self.trainer.context, number, micros)
        self.steps.append(time.perf_counter() - began)
        self.loading.append(built - self.encoding)
        self.waiting.append(self.pixels)

    @classmethod
    def of(cls, trainer: Trainer, family: Family) -> _Case:
        """Return a case whose encoding and waiting for pixels are timed."""
        case, pixels = cls(trainer), trainer.batches.encoder.pixels
        for owner, name, part in (
            (family, "encode_image", "encoding"),
            (family, "encode_text", "encoding"),
            (pixels, "load", "pixels"),
        ):
            setattr(owner, name, case._timing(getattr(owner, name), part))
        return case

    def __str__(self) -> str:
        """Return its figures, in a line."""
        whole, loading, waiting = map(median, (self.steps, self.loading, self.waiting))
        shares = f"{loading / whole:>9.1%}{1e3 * waiting:>17.1f} ms{waiting / whole:>9.1%}"
        return f"{1e3 * whole:>7.0f} ms{1e3 * loading:>8.1f} ms{shares}"

    def _timing(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timing(*given: Any) -> Any:
            began = time.perf_counter()
            result = call(*given)
            setattr(self, part, getattr(self, part) + time.perf_counter() - began)
            return result

        return timing


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help=f"of each case, of {_TURN} steps each")
    turns = parser.parse_args().turns
    models.quiet()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        pictures = _write_pictures(Path(folder))
        cases = {name: _case(held, pictures, data) for name, data in _CASES.items()}
        for _ in range(turns):
            for case in cases.values():
                case.turn()
        print(f"{'':28}{'step':>10}{'loading':>11}{'of step':>9}{'waiting for pixels':>20}{'of step':>9}")
        for name, case in cases.items():
            print(f"{name:28}{case}")
    _print_alone(load_run_base(_config(Path(), {})))


def _print_alone(family: Family) -> None:
    """Print what it costs that the autoencoder takes pictures one by one and not several at once."""
    pixels = torch.rand(8, 3, 64, 64) * 2 - 1
    times: dict[int, list[float]] = {1: [], 8: []}
    for _ in range(6):
        for batch, measured in times.items():
            began = time.perf_counter()
            for start in range(0, 8, batch):
                family.encode_image(pixels[start : start + batch])
            measured.append(time.perf_counter() - began)
    alone, together = median(times[1][1:]), median(times[8][1:])
    print(
        f"autoencoder: 8 pictures alone {1e3 * alone:.0f} ms, together {1e3 * together:.0f} ms: {alone / together:.2f}"
    )


def _config(pictures: Path, data: dict[str, Any]) -> Any:
    values = {"sources": [{"path": str(pictures)}], "trigger": "noise", "held_out": 0, **data}
    return build_config({"base": "bundled", "data": values, "train": {"max_steps": 10**6}}, "benchmark")


def _case(held: ExitStack, pictures: Path, data: dict[str, Any]) -> _Case:
    family = load_run_base(_config(pictures, data))
    config = resolve(_config(pictures, data), family)
    trainer = held.enter_context(closing(Trainer(config, family, survey(config.data))))
    for encode in trainer.batches.encoding_calls(range(100)):
        encode()
    return _Case.of(trainer, family)


def _write_pictures(folder: Path) -> Path:
    """Write pictures with detail at all scales, as a camera's have."""
    for number in range(_PICTURES):
        noise = np.random.default_rng(number).integers(0, 256, (_SIZE[1] // 4, _SIZE[0] // 4, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize(_SIZE).filter(ImageFilter.GaussianBlur(1))
        image.save(folder / f"{number}.jpg", quality=92)
    return folder


if __name__ == "__main__":
    main()
