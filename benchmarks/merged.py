"""Show that a merged adapter costs no time (Hu et al. 2021, section 4.1): merged over base, beside base over base.

python -m benchmarks.merged               measure on both bases, write results and page
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

import veneer
from benchmarks import models
from benchmarks.page import figures_of, keep, machine, show
from benchmarks.timing import Seconds, interleaved, ratio

NAME = "merged"
BASE, AGAIN, MERGED = "base", "base again", "merged"
PIXELS = 256  # of the full-size denoiser
TITLES = {
    "bundled": "The bundled base's whole pipeline, one picture of 64 pixels, 25 steps",
    "full": f"Stable Diffusion 1.5's denoiser at full size, one forward pass at {PIXELS} pixels",
}


def main() -> None:
    """Measure, store the figures and publish them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    models.quiet()
    figures = figures_of(NAME) | {"machine": machine()}
    for base in TITLES:
        figures[base] = _bundled(rounds) if base == "bundled" else _full(rounds)
        keep(NAME, figures)
    show(NAME, section(figures))


def _bundled(rounds: int) -> Seconds:
    pipeline: Any = models.bundled()
    merged = models.beside(pipeline)
    _merge(merged.unet)

    def paint(pipeline: Any) -> object:
        return pipeline("a turtle", num_inference_steps=25, generator=torch.Generator().manual_seed(0))

    return interleaved(
        {BASE: lambda: paint(pipeline), MERGED: lambda: paint(merged), AGAIN: lambda: paint(pipeline)}, rounds
    )


def _full(rounds: int) -> Seconds:
    unet = models.full_size()
    merged = models.twin(unet)
    _merge(merged)
    return interleaved(
        {
            BASE: lambda: models.denoise(unet, 1, PIXELS),
            MERGED: lambda: models.denoise(merged, 1, PIXELS),
            AGAIN: lambda: models.denoise(unet, 1, PIXELS),
        },
        rounds,
    )


def _merge(unet: Any) -> None:
    veneer.merge({"unet": unet}, [(models.adapter({"unet": unet}, 4, seed=0), 1.0)])


def section(figures: dict[str, Any]) -> str:
    """Write the page's section from the figures."""
    rows = [f"On {figures['machine']}. An adapter of rank 4 on the attention.", ""]
    rows += [
        "| what runs | base, s | merged over base | base again over base: the noise |",
        "| --- | --- | --- | --- |",
    ]
    for base, title in TITLES.items():
        seconds: Seconds = figures[base]
        middle = sorted(seconds[BASE])[len(seconds[BASE]) // 2]
        merged, again = (ratio(seconds[way], seconds[BASE]) for way in (MERGED, AGAIN))
        rows.append(f"| {title} | {middle:.3f} | {merged} | {again} |")
    return "\n".join([*rows, ""])


if __name__ == "__main__":
    main()
