"""Measure how a step's time and memory grow with pictures, pixels, rank, and adapters in memory.

python -m benchmarks.growth                    measure every axis, write results, page and docs/growth.png
python -m benchmarks.growth --axis rank        one of them again
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest import mock

from torch import Tensor, nn
from torch.nn import functional

import veneer
from benchmarks import models
from benchmarks.page import PAGE, figures_of, keep, machine, show
from benchmarks.saved_tensors import saved_tensor_bytes
from benchmarks.timing import interleaved, slope

NAME = "growth"
_DECADE = 10
"""What does not grow is drawn flat: an axis spans this much at least."""
PLOT = PAGE.with_name("growth.png")
PEFT, LEAN, LINEAR, PASS = "peft", "lean", "lean, no attention", "bank"
AXES: dict[str, tuple[int, ...]] = {
    "pictures": (1, 2, 4, 8, 16),
    "pixels": (64, 128, 256, 512),
    "rank": (1, 4, 16, 64, 128),
    "adapters": (1, 4, 16, 64),
}
USUAL = {"pictures": 1, "pixels": 256, "rank": 4}
"""Of what does not grow; 128 pixels where pictures do."""
LABELS = {
    "pictures": "pictures in the batch",
    "pixels": "tokens: pixels of the side, squared",
    "rank": "rank",
    "adapters": "adapters in memory",
}
WHAT = {
    PEFT: "a step with peft's adapters",
    LEAN: "at `lean`",
    LINEAR: "at `lean`, attention's products left out",
    PASS: "a forward pass of two rows with `AdapterBank`",
    "bytes": "bytes kept for the backward pass at `lean`",
    "bank bytes": "bytes of the adapters",
}


def main() -> None:
    """Measure, store the figures, publish and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=tuple(AXES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    models.quiet()
    for axis in (options.axis,) if options.axis else AXES:
        points = [_point(axis, size, options.rounds) for size in AXES[axis]]
        keep(NAME, figures_of(NAME) | {"machine": machine(), axis: points})
    figures = figures_of(NAME)
    draw(figures)
    show(NAME, section(figures))


def _point(axis: str, size: int, rounds: int) -> dict[str, float]:
    return _bank(size, rounds) if axis == "adapters" else _step(axis, size, rounds)


def _step(axis: str, size: int, rounds: int) -> dict[str, float]:
    """Measure the seconds of a forward and backward pass, and the bytes saved between them."""
    at = USUAL | ({"pixels": 128} if axis == "pictures" else {}) | {axis: size}
    base = models.narrow()
    networks = {PEFT: models.adapted(base, at["rank"]), LEAN: models.adapted(base, at["rank"])}
    veneer.prepare(networks[LEAN], "lean")

    def loss(way: str) -> Tensor:
        return models.squared_error(networks[way], at["pictures"], at["pixels"])

    def without_attention() -> None:
        with no_attention():
            _backward(loss(LEAN))

    ways: Mapping[str, Callable[[], object]] = {
        PEFT: lambda: _backward(loss(PEFT)),
        LEAN: lambda: _backward(loss(LEAN)),
        LINEAR: without_attention,
    }
    seconds = {way: median(taken) for way, taken in interleaved(ways, rounds).items()}
    return {"size": size} | seconds | {"bytes": saved_tensor_bytes(lambda: loss(LEAN))}


def _backward(loss: Tensor) -> None:
    loss.backward()


@contextmanager
def no_attention() -> Iterator[None]:
    """Leave attention out: only a mean of keys and values is added, so that all gradients flow."""

    def alone(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        return query + (key + value).mean(-2, keepdim=True)

    with mock.patch.object(functional, "scaled_dot_product_attention", alone):
        yield


def _bank(size: int, rounds: int) -> dict[str, float]:
    """Measure the seconds of a forward pass of two rows while so many adapters are in memory, and their bytes."""
    networks: dict[str, nn.Module] = {"unet": models.narrow()}
    bank = veneer.AdapterBank(networks)
    adapters = models.adapters(networks, size, USUAL["rank"])
    for name, factors in adapters.items():
        bank.add(name, factors)
    rows = [bank.names[0], bank.names[-1]]

    def forward() -> None:
        with bank.rows(rows):
            models.denoise(networks["unet"], 2, USUAL["pixels"])

    held = sum(4 * part.parameter_count for factors in adapters.values() for part in factors.values())
    return {"size": size, PASS: median(interleaved({PASS: forward}, rounds)[PASS]), "bank bytes": held}


def section(figures: dict[str, Any]) -> str:
    """Write the page's section from the figures."""
    if not figures:
        return "Not measured yet.\n"
    rows = [
        "A network of Stable Diffusion 1.5's kind, a fifth as wide (64 to 256 channels), adapters of rank 4 on the "
        "attention, one picture of 256 pixels (128 where their number grows), but for what grows. On "
        f"{figures['machine']}.",
        "",
        "![Time and bytes against what grows, on logarithmic axes](growth.png)",
        "",
        "The slope is the power that the value grows with: from the smallest size to the largest, and between the two "
        "largest alone.",
        "",
        "| what grows | of what | from, to | slope | slope at the end |",
        "| --- | --- | --- | --- | --- |",
    ]
    for axis in AXES:
        if axis in figures:
            rows += rows_of(axis, figures[axis])
    return "\n".join([*rows, ""])


def rows_of(axis: str, points: Sequence[dict[str, float]]) -> Iterator[str]:
    """Yield the table's rows of one axis."""
    sizes = [_across(axis, point["size"]) for point in points]
    shown = f"{AXES[axis][0]} to {AXES[axis][-1]}"
    for what in list(points[0])[1:]:
        values = [point[what] for point in points]
        scale, unit = (2**20, "MiB") if "bytes" in what else (1, "s")
        ends = f"{values[0] / scale:.3f} to {values[-1] / scale:.3f} {unit}"
        last = slope(sizes[-2:], values[-2:])
        yield f"| {LABELS[axis]}, {shown} | {WHAT[what]} | {ends} | {slope(sizes, values):.2f} | {last:.2f} |"


def _across(axis: str, size: float) -> float:
    """Return the size that the work is linear in: tokens go with the square of the side."""
    return size * size if axis == "pixels" else size


def draw(figures: dict[str, Any]) -> None:
    """Draw time and bytes against each size, on logarithmic axes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    axes = [axis for axis in AXES if axis in figures]
    size = 3.2 * len(axes), 5.6
    drawing, panels = pyplot.subplots(2, len(axes), figsize=size, squeeze=False, constrained_layout=True)
    for column, axis in enumerate(axes):
        points = figures[axis]
        sizes = [_across(axis, point["size"]) for point in points]
        for what in list(points[0])[1:]:
            panel = panels[int("bytes" in what)][column]
            values = [point[what] / (2**20 if "bytes" in what else 1) for point in points]
            panel.loglog(sizes, values, "o-", markersize=3, label=f"{what}: {slope(sizes, values):.2f}")
            panel.legend(fontsize=7)
            panel.grid(True, which="both", alpha=0.2)
            low, high = panel.get_ylim()
            panel.set_ylim(min(low, high / _DECADE), max(high, low * _DECADE))
        panels[1][column].set_xlabel(LABELS[axis], fontsize=8)
    panels[0][0].set_ylabel("seconds")
    panels[1][0].set_ylabel("MiB")
    drawing.savefig(PLOT, dpi=110, metadata={"Software": None})
    pyplot.close(drawing)


if __name__ == "__main__":
    main()
