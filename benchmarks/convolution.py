"""Time frozen convolutions of Stable Diffusion 1.5: PyTorch's, and the engine's, some of which are matrix products.

python -m benchmarks.convolution               measure, write results and page
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import veneer
from benchmarks import models
from benchmarks.page import figures_of, keep, machine, show
from benchmarks.timing import interleaved, ratio

NAME = "convolution"
SHAPES = (
    (1, 320, 320, 64),
    (1, 640, 640, 32),
    (1, 1280, 640, 16),
    (1, 1280, 1280, 16),
    (1, 640, 1280, 8),
    (1, 1280, 1280, 8),
    (2, 1280, 1280, 8),
    (4, 1280, 1280, 8),
    (1, 2560, 1280, 8),
    (1, 1280, 1280, 4),
    (1, 2560, 1280, 4),
)
"""Batch, inputs, outputs and side of the picture; kernels are 3 x 3."""
PLAIN, OURS = "PyTorch", "engine"


def main() -> None:
    """Measure, store the figures and publish them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    models.quiet()
    measured = {" ".join(map(str, shape)): measure(shape, rounds) for shape in SHAPES}
    keep(NAME, {"machine": machine(), "shapes": measured})
    show(NAME, section(figures_of(NAME)))


def measure(shape: tuple[int, int, int, int], rounds: int) -> dict[str, list[float]]:
    """Time the forward pass and the input's gradient in each way."""
    batch, inputs, outputs, side = shape
    plain = nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)
    layers: dict[str, nn.Module] = {PLAIN: plain, OURS: copy.deepcopy(plain)}
    veneer.prepare(layers[OURS], "lean")
    x, dy = torch.randn(batch, inputs, side, side), torch.randn(batch, outputs, side, side)

    def step(layer: nn.Module) -> Callable[[], Tensor]:
        own = x.clone().requires_grad_()
        return lambda: torch.autograd.grad(layer(own), own, dy)[0]

    return interleaved({way: step(layer) for way, layer in layers.items()}, rounds)


def section(figures: dict[str, Any]) -> str:
    """Write the page's section from the figures."""
    if not figures:
        return "Not measured yet.\n"
    rows = [
        f"On {figures['machine']}; forward pass and the input's gradient.",
        "",
        "| batch | inputs | outputs | side | PyTorch, ms | the engine's over it |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for shape, seconds in figures["shapes"].items():
        middle = 1e3 * sorted(seconds[PLAIN])[len(seconds[PLAIN]) // 2]
        rows.append(f"| {' | '.join(shape.split())} | {middle:.1f} | {ratio(seconds[OURS], seconds[PLAIN])} |")
    return "\n".join([*rows, ""])


if __name__ == "__main__":
    main()
