"""Time a batch of many adapters against the plain base, and against one picture after another.

python -m benchmarks.batched              measure all, write results and page
python -m benchmarks.batched --part full  measure a part again: bundled or full
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import nn

import veneer
from benchmarks import models, peers
from benchmarks.page import figures_of, keep, machine, show
from benchmarks.timing import Ratio, Seconds, interleaved, ratio

NAME = "batched"
PICTURES = 8
STEPS, GUIDANCE = 25, 4.0  # of the bundled base's pipeline
PASSES, PIXELS = 4, 64  # of the full-size denoiser

BASE, BANK, PEFT = "base", "bank", "peft, mixed batch"
ALONE, FUSE, SET, MERGE = "base, one by one", "diffusers, load and fuse", "diffusers, set_adapters", "veneer, merge"
WHAT = {
    BASE: "plain base, one batch of 8: the floor",
    BANK: "8 adapters, one batch of 8, `AdapterBank`",
    PEFT: "8 adapters, one batch of 8, peft's `adapter_names`",
    ALONE: "plain base, eight runs of one",
    FUSE: "eight runs of one: diffusers' load, fuse, unfuse, unload between",
    SET: "eight runs of one: all loaded in diffusers, `set_adapters` between",
    MERGE: "eight runs of one: `veneer.merge` and undo between",
}


@dataclass(frozen=True)
class _Bench:
    """A base to measure on.

    Attributes:
        pipeline: that is never changed.
        fusing: one over the same weights at first, which diffusers fuses into.
        loaded: one over the same weights with all adapters loaded.
        run: what is timed: so many pictures.
        copies: how often the denoiser's batch holds each row.
    """

    pipeline: StableDiffusionPipeline
    fusing: StableDiffusionPipeline
    loaded: StableDiffusionPipeline
    run: Callable[[StableDiffusionPipeline, int], object]
    copies: int


def main() -> None:
    """Measure, store the figures and publish them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=tuple(_TITLES))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    models.quiet()
    figures = figures_of(NAME) | {"machine": machine()}
    for part in (options.part,) if options.part else _TITLES:
        figures[part] = _measure(part, options.rounds)
        keep(NAME, figures)
    show(NAME, section(figures))


def _measure(part: str, rounds: int) -> Seconds:
    bench = _bundled() if part == "bundled" else _full()
    with tempfile.TemporaryDirectory() as folder:
        return interleaved(_ways(bench, Path(folder)), rounds)


def _bundled() -> _Bench:
    """Set up the whole pipeline of the bundled base at its own 64 pixels."""

    def paint(pipeline: StableDiffusionPipeline, count: int) -> object:
        generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
        prompts = ["a turtle"] * count
        return pipeline(prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators)

    pipeline = models.bundled()
    return _Bench(pipeline, models.beside(pipeline), models.beside(pipeline), paint, copies=2)


def _full() -> _Bench:
    """Set up forward passes of the full-size denoiser; the pipeline's other parts do not run."""
    pipeline: Any = models.bundled()
    pipeline.unet = models.full_size()

    def denoise(pipeline: Any, count: int) -> None:
        for _ in range(PASSES):
            models.denoise(pipeline.unet, count, PIXELS)

    return _Bench(pipeline, models.beside(pipeline), models.beside(pipeline), denoise, copies=1)


def _ways(bench: _Bench, folder: Path) -> dict[str, Callable[[], object]]:
    networks: dict[str, nn.Module] = {"unet": bench.pipeline.unet}
    adapters = models.adapters(networks, PICTURES)
    names, files = list(adapters), peers.write(adapters, folder)
    peers.load_all(bench.loaded, files)
    bank = veneer.AdapterBank(networks)
    for name, factors in adapters.items():
        bank.add(name, factors)

    def distributed() -> None:
        with bank.rows(names, guidance=bench.copies == 2):
            bench.run(bench.pipeline, PICTURES)

    def mixed() -> None:
        with peers.mixed(bench.loaded.unet, names * bench.copies):
            bench.run(bench.loaded, PICTURES)

    @contextmanager
    def merged(name: str) -> Iterator[None]:
        done = veneer.merge(networks, [(adapters[name], 1.0)])
        yield
        done.undo()

    @contextmanager
    def chosen(name: str) -> Iterator[None]:
        bench.loaded.set_adapters(name)
        yield

    def one_by_one(pipeline: StableDiffusionPipeline, contexts: Iterable[Any]) -> None:
        for context in contexts:
            with context:
                bench.run(pipeline, 1)

    return {
        BASE: lambda: bench.run(bench.pipeline, PICTURES),
        BANK: distributed,
        PEFT: mixed,
        ALONE: lambda: [bench.run(bench.pipeline, 1) for _ in names],
        FUSE: lambda: one_by_one(bench.fusing, (peers.fused(bench.fusing, files[name]) for name in names)),
        SET: lambda: one_by_one(bench.loaded, (chosen(name) for name in names)),
        MERGE: lambda: one_by_one(bench.pipeline, (merged(name) for name in names)),
    }


def section(figures: dict[str, Any]) -> str:
    """Write the page's section from the figures."""
    parts = [_table(figures[part], title) for part, title in _TITLES.items() if part in figures]
    if not parts:
        return "Not measured yet.\n"
    return "\n".join([f"On {figures['machine']}.\n", *parts])


_TITLES = {
    "bundled": f"The bundled base's whole pipeline, 64 pixels, {STEPS} steps, guidance {GUIDANCE:g}",
    "full": f"Stable Diffusion 1.5's denoiser at full size, {PIXELS} pixels, {PASSES} forward passes a picture",
}


def _table(seconds: Seconds, title: str) -> str:
    rows = [f"{title}; adapters of rank 4 on the attention:", "", "| way | seconds | the bank's time over it |"]
    rows.append("| --- | --- | --- |")
    for name, taken in seconds.items():
        over = "" if name == BANK else str(ratio(seconds[BANK], taken))
        rows.append(f"| {WHAT[name]} | {sorted(taken)[len(taken) // 2]:.2f} | {over} |")
    floor: Ratio = ratio(seconds[BASE], seconds[ALONE])
    rows += ["", f"The floor of one batch over eight runs is the base's own: {floor}.", ""]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
