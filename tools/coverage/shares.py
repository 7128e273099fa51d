"""Simulate paintings whose truth is known, and count how often the intervals of shares cover it.

``python -m tools.coverage.shares`` takes seconds and writes a table of ``docs/evaluate.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.publish import publish
from veneer.evaluate.interval import Values
from veneer.evaluate.proportion import share_difference_interval, share_interval
from veneer.evaluate.results import Share, things_verdict_of

__all__ = ["FIGURES", "PAGE", "SECTION", "TRUTHS", "Counts", "count_cases", "table"]

FIGURES = Path(__file__).parent / "shares.json"
PAGE = Path(__file__).parents[2] / "docs" / "evaluate.md"
SECTION = "shares"
PROMPTS = (8, 16, 32, 64)
CASES = 4_000
_ALIKE = 0.3
"""How alike the pictures of one prompt are: the correlation of two of them."""


class Truth(NamedTuple):
    """What an adapter does to things.

    Attributes:
        base: share of all prompts that the base paints right.
        adapter: and the adapter.
        pictures: number of pictures of each prompt.
    """

    base: float
    adapter: float
    pictures: int = 1


TRUTHS: Mapping[str, Truth] = {
    "a third is lost": Truth(0.9, 0.6),
    "a third is lost, 3 pictures each": Truth(0.9, 0.6, 3),
    "a fiftieth is lost": Truth(0.9, 0.88),
    "of a weak base nearly half": Truth(0.5, 0.3),
    "nothing": Truth(0.8, 0.8),
}


@dataclass(frozen=True)
class Counts:
    """Shares of the simulated evaluations of one truth and number of prompts.

    Attributes:
        share: whose interval of the adapter's share covers the truth.
        difference: whose interval of the difference does.
        lost: that are called lost.
    """

    share: float
    difference: float
    lost: float


def count_cases(truth: Truth, prompts: int, cases: int) -> Counts:
    """Simulate evaluations and count what their intervals and verdicts say."""
    hits = np.zeros(3)
    for number in range(cases):
        base_N, adapter_N = _painted(np.random.default_rng([prompts, number]), truth, prompts)
        low, high = share_interval(adapter_N, truth.pictures)
        difference = Share(float((adapter_N - base_N).mean()), *share_difference_interval(adapter_N - base_N))
        covers = difference.low <= truth.adapter - truth.base <= difference.high
        hits += low <= truth.adapter <= high, covers, things_verdict_of(difference) == "lost"
    return Counts(*(hits / cases).tolist())


def _painted(random: np.random.Generator, truth: Truth, prompts: int) -> tuple[Values, Values]:
    """Draw the share of each prompt's pictures that base and adapter paint right.

    Prompts differ in how hard they are, for both alike, and in how much of each an adapter loses; where it loses
    nothing it paints as well as the base, but not the same pictures.
    """
    base_N = _propensities(random, truth.base, prompts)
    kept = truth.adapter / truth.base
    adapter_N = base_N if kept == 1 else base_N * _propensities(random, kept, prompts)
    base, adapter = (random.random((prompts, truth.pictures)) < each[:, None] for each in (base_N, adapter_N))
    return base.mean(axis=1), adapter.mean(axis=1)


def _propensities(random: np.random.Generator, mean: float, count: int) -> Values:
    concentration = 1 / _ALIKE - 1
    drawn: Values = random.beta(mean * concentration, (1 - mean) * concentration, count)
    return drawn


def table(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return the figures as the page has them: of the share, of the difference, and what is called lost."""
    head = [f"| what an adapter does | {' | '.join(f'{n} prompts' for n in PROMPTS)} |"]
    head.append(f"| --- | {' | '.join('---' for _ in PROMPTS)} |")
    rows = [
        f"| {name} | {' | '.join(_cell(by_count[str(n)]) for n in PROMPTS)} |" for name, by_count in figures.items()
    ]
    return "\n".join([*head, *rows, ""])


def _cell(counts: Mapping[str, float]) -> str:
    return f"{counts['share']:.1%}, {counts['difference']:.1%}, {counts['lost']:.1%}"


def main() -> None:
    """Simulate, print the table, keep the figures, and publish them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=CASES, help="simulated evaluations a cell")
    cases = parser.parse_args().cases
    figures = {name: {str(n): asdict(count_cases(truth, n, cases)) for n in PROMPTS} for name, truth in TRUTHS.items()}
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    publish(PAGE, table(figures), SECTION)
    print(table(figures))


if __name__ == "__main__":
    main()
