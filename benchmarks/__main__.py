"""Write the pages and the plot again from stored figures (``python -m benchmarks``); nothing is measured."""

from __future__ import annotations

from benchmarks import (
    batched,
    convolution,
    growth,
    loading,
    manifest,
    merged,
    overhead,
    peak_memory,
    precision,
    profile_step,
    saved_bytes,
    switching,
    training_step,
)
from benchmarks.page import figures_of, show
from tools.publish import publish

BENCHMARKS = (
    saved_bytes,
    convolution,
    training_step,
    profile_step,
    peak_memory,
    loading,
    growth,
    batched,
    switching,
    merged,
    overhead,
    manifest,
)


def main() -> None:
    """Write each section that has figures."""
    for benchmark in BENCHMARKS:
        if figures := figures_of(benchmark.NAME):
            show(benchmark.NAME, benchmark.section(figures))
    growth.draw(figures_of(growth.NAME))
    if figures := figures_of(manifest.NAME):
        manifest.draw(figures)
    publish(overhead.WATCHING_PAGE, overhead.sentence(figures_of(overhead.NAME)), overhead.NAME)
    publish(saved_bytes.ENGINE_PAGE, saved_bytes.short(figures_of(saved_bytes.NAME)), saved_bytes.SHORT)
    if figures := figures_of(precision.NAME):
        publish(precision.PAGE, precision.section(figures), precision.NAME)


if __name__ == "__main__":
    main()
