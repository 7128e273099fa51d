"""Simulate evaluations whose truth is known, and count how often the 95 % interval covers it.

``python -m tools.coverage`` takes a minute and writes the table of ``docs/evaluate.md``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tools.publish import publish
from veneer.evaluate.comparison import Losses, paired_difference
from veneer.evaluate.interval import RESAMPLES, difference_interval

FIGURES = Path(__file__).parent / "figures.json"
PAGE = Path(__file__).parents[2] / "docs" / "evaluate.md"
PICTURES = (8, 16, 32, 64)
CASES = 4_000
DRAWS = 8

Case = Callable[[np.random.Generator, int], tuple[Losses, Losses]]
"""From a generator and a number of pictures to losses of adapter and base, (pictures, draws) each."""


def _paired(gain: Callable[[np.random.Generator, int], Losses]) -> Case:
    """Return a case whose differences by picture are the gains; picture and noise are the same for both models."""

    def case(random: np.random.Generator, pictures: int) -> tuple[Losses, Losses]:
        base = _base(random, pictures)
        return base - gain(random, pictures)[:, None], base

    return case


def _base(random: np.random.Generator, pictures: int) -> Losses:
    """Draw losses of a base: a factor of the picture, one of the time, of which few dominate, and one of the noise."""
    time = (np.arange(DRAWS) + random.random((pictures, DRAWS))) / DRAWS
    losses: Losses = (
        random.gamma(4, 0.25, (pictures, 1)) * np.exp(-3 * time) * random.gamma(20, 0.05, (pictures, DRAWS))
    )
    return losses


def _share(random: np.random.Generator, pictures: int) -> tuple[Losses, Losses]:
    """Draw losses of an adapter that takes away a tenth on average, of some pictures much more, with outliers."""
    base = _base(random, pictures)
    share = random.gamma(2, 0.05, (pictures, 1))
    outliers = 0.01 * random.standard_t(4, base.shape)
    return base * (1 - share) + outliers, base


def _nothing(random: np.random.Generator, pictures: int) -> tuple[Losses, Losses]:
    """Draw losses of an adapter that changes them a little, up as often as down."""
    base = _base(random, pictures)
    return base + 0.02 * random.standard_t(3, (pictures, 1)) + 0.02 * random.standard_normal(base.shape), base


CASES_BY_NAME: Mapping[str, tuple[Case, float]] = {
    "even": (_paired(lambda random, n: 0.1 + random.normal(0, 0.1, n)), -0.1),
    "skewed": (_paired(lambda random, n: random.exponential(0.1, n)), -0.1),
    "outliers": (_paired(lambda random, n: 0.1 + 0.1 * random.standard_t(3, n)), -0.1),
    # the mean of exp(-3 t) over t in [0, 1], times the mean share; picture and noise have a mean of 1
    "a share of the loss": (_share, -0.1 * (1 - math.exp(-3)) / 3),
    "nothing": (_nothing, 0.0),
}
"""Effects of an adapter on losses, with the true mean difference."""


def coverage(name: str, pictures: int, cases: int, resamples: int = RESAMPLES) -> float:
    """Return the share of cases whose interval covers the truth."""
    case, truth = CASES_BY_NAME[name]
    hits = 0
    for number in range(cases):
        score = paired_difference(*case(np.random.default_rng([pictures, number]), pictures), resamples=resamples)
        hits += score.low <= truth <= score.high
    return hits / cases


def mixed_coverage(pictures: int, cases: int, resamples: int = RESAMPLES) -> float:
    """Return the share of cases, as many of each kind, whose interval covers the truth."""
    kinds = list(CASES_BY_NAME.values())
    hits = 0
    for number in range(cases):
        case, truth = kinds[number % len(kinds)]
        score = paired_difference(*case(np.random.default_rng([pictures, number]), pictures), resamples=resamples)
        hits += score.low <= truth <= score.high
    return hits / cases


def gap_coverage(pictures: int, cases: int, resamples: int = RESAMPLES) -> float:
    """Return that share for the gap between skewed gains on held-out pictures and even ones on twice as many others."""
    hits = 0
    for number in range(cases):
        random = np.random.default_rng([pictures, number])
        low, high = difference_interval(
            -random.exponential(0.1, pictures), random.normal(-0.3, 0.1, 2 * pictures), resamples=resamples
        )
        hits += low <= 0.2 <= high
    return hits / cases


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Return the figures as the page has them."""
    rows = [f"| {name} | {' | '.join(f'{shares[str(n)]:.1%}' for n in PICTURES)} |" for name, shares in figures.items()]
    return "\n".join(
        [
            f"| differences by picture | {' | '.join(f'{n} pictures' for n in PICTURES)} |",
            f"| --- | {' | '.join('---' for _ in PICTURES)} |",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Simulate, print the shares, write them, and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=CASES, help="simulated evaluations a cell")
    cases = parser.parse_args().cases
    figures: dict[str, Any] = {}
    for name in CASES_BY_NAME:
        figures[name] = {str(n): coverage(name, n, cases, 2_000) for n in PICTURES}
        print(name, figures[name], flush=True)
    figures["memorisation gap"] = {str(n): gap_coverage(n, cases, 2_000) for n in PICTURES}
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    publish(PAGE, table(figures))
    print(table(figures))


if __name__ == "__main__":
    main()
