"""Measure what a forward pass saves for the backward pass, and what the step takes, at each memory level.

python -m benchmarks.saved_bytes                  measure both sizes of picture, write results and page
python -m benchmarks.saved_bytes --pixels 512     one of them again
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import veneer
from benchmarks import models
from benchmarks.page import PAGE, figures_of, keep, machine, show
from benchmarks.saved_tensors import saved_tensor_bytes
from benchmarks.timing import interleaved, ratio
from tools.publish import publish
from veneer.engine import MemoryLevel

NAME, SHORT = "saved_bytes", "cost"
ENGINE_PAGE = PAGE.with_name("engine.md")
PIXELS = (256, 512)
LEVELS: tuple[MemoryLevel, ...] = ("lean", "leaner", "checkpoint")
BARS = {"lean": (0.62, 1.02), "leaner": (0.30, 1.15)}
"""The limits of bytes and of time over peft, for the levels that have one."""
FROZEN_BAR = 1.05
FROZEN, FROZEN_LEAN, PEFT = "frozen", "frozen, lean", "peft"
WHAT = {
    FROZEN: "no adapter, one input that requires a gradient",
    FROZEN_LEAN: "the same, prepared at `lean`",
    PEFT: "peft's adapters in diffusers, as they come: `exact`",
    "lean": "the same adapters, prepared at `lean`",
    "leaner": "prepared at `leaner`",
    "checkpoint": "prepared at `checkpoint`",
}


def main() -> None:
    """Measure, store the figures and publish them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, choices=PIXELS)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    models.quiet()
    forwards = _forwards()
    for pixels in PIXELS if options.pixels is None else (options.pixels,):
        figures = figures_of(NAME) | {str(pixels): measure(forwards, pixels, options.rounds)}
        keep(NAME, figures)
    publish_all(figures_of(NAME))


def publish_all(figures: dict[str, Any]) -> None:
    """Put the whole tables on the benchmarks' page, the short one on the engine's."""
    publish(ENGINE_PAGE, short(figures), SHORT)
    show(NAME, section(figures))


def _forwards() -> dict[str, Callable[[int], Tensor]]:
    """Return functions for the loss of each way, by networks of their own over the same weights."""
    base = models.full_size()
    networks: dict[str, nn.Module] = {FROZEN: base, FROZEN_LEAN: models.twin(base), PEFT: models.adapted(base)}
    veneer.prepare(networks[FROZEN_LEAN], "lean")
    for level in LEVELS:
        networks[level] = models.adapted(base)
        veneer.prepare(networks[level], level)

    def forward(way: str) -> Callable[[int], Tensor]:
        return lambda pixels: models.squared_error(networks[way], 1, pixels, input_learns=way.startswith(FROZEN))

    return {way: forward(way) for way in WHAT}


def measure(forwards: dict[str, Callable[[int], Tensor]], pixels: int, rounds: int) -> dict[str, Any]:
    """Measure the bytes of each way, and the seconds of each of its rounds."""
    kept = {way: saved_tensor_bytes(lambda forward=forward: forward(pixels)) for way, forward in forwards.items()}  # type: ignore[misc]
    steps = {way: _step(forward, pixels) for way, forward in forwards.items()}
    return {"machine": machine(), "bytes": kept, "seconds": interleaved(steps, rounds)}


def _step(forward: Callable[[int], Tensor], pixels: int) -> Callable[[], None]:
    """Return a forward and backward pass; gradients add up, as between a trainer's micro-batches."""
    return lambda: forward(pixels).backward()


def section(figures: dict[str, Any]) -> str:
    """Write the page's section from the figures."""
    parts = [_table(figures[str(pixels)], pixels) for pixels in PIXELS if str(pixels) in figures]
    return "\n".join(parts) if parts else "Not measured yet.\n"


def _table(figures: dict[str, Any], pixels: int) -> str:
    kept, seconds = figures["bytes"], figures["seconds"]
    rows = [
        f"{pixels} pixels, batch 1, on {figures['machine']}; {len(seconds[PEFT])} rounds:",
        "",
        "| forward and backward pass | kept, MiB | kept over peft's | seconds | time over peft's | time over frozen |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way, text in WHAT.items():
        middle = sorted(seconds[way])[len(seconds[way]) // 2]
        over = ratio(seconds[way], seconds[PEFT]), ratio(seconds[way], seconds[FROZEN])
        share = kept[way] / kept[PEFT]
        rows.append(f"| {text} | {kept[way] / 2**20:.1f} | {share:.3f} | {middle:.2f} | {over[0]} | {over[1]} |")
    return "\n".join([*rows, "", _verdict(figures), ""])


def short(figures: dict[str, Any]) -> str:
    """Write each level's bytes and time over peft's, for both sizes."""
    sizes = [pixels for pixels in PIXELS if str(pixels) in figures]
    if not sizes:
        return "Not measured yet.\n"
    columns = [f"{what}, {pixels} pixels" for pixels in sizes for what in ("kept", "time")]
    rows = [
        "Of Stable Diffusion 1.5's denoiser at full size, batch 1, adapters of rank 4 on the attention; bytes kept for "
        "the backward pass, and time of forward and backward pass, over those of peft in diffusers "
        "(`python -m benchmarks.saved_bytes`):",
        "",
        f"| level | {' | '.join(columns)} |",
        f"| --- |{' --- |' * len(columns)}",
    ]
    for level in LEVELS:
        row = [part for pixels in sizes for part in _over_peft(figures[str(pixels)], level)]
        rows.append(f"| `{level}` | {' | '.join(row)} |")
    return "\n".join([*rows, ""])


def _over_peft(figures: dict[str, Any], level: str) -> tuple[str, str]:
    kept, seconds = figures["bytes"], figures["seconds"]
    return f"{kept[level] / kept[PEFT]:.3f}", str(ratio(seconds[level], seconds[PEFT]))


def _verdict(figures: dict[str, Any]) -> str:
    """Write each limit, and what was measured."""
    kept, seconds, said = figures["bytes"], figures["seconds"], []
    for level, (most_kept, most_time) in BARS.items():
        share, time = kept[level] / kept[PEFT], ratio(seconds[level], seconds[PEFT]).middle
        said.append(f"`{level}` kept {share:.3f} of {most_kept} allowed, time {time:.3f} of {most_time}")
    over, adapter = (ratio(seconds["lean"], seconds[way]).middle for way in (FROZEN, FROZEN_LEAN))
    said.append(f"`lean` over frozen {over:.3f} of {FROZEN_BAR}")
    return f"Bars: {'; '.join(said)}. Over the same prepared network without adapters, `lean` is {adapter:.3f}."


if __name__ == "__main__":
    main()
