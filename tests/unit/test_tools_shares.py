"""The simulated coverage of the intervals of shares, and the figures that the page quotes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tools.coverage import shares
from tools.publish import published
from tools.zero_shot import __main__ as zero_shot


@pytest.mark.parametrize("name", shares.TRUTHS)
@pytest.mark.parametrize("prompts", [8, 32, 64])
def test_no_interval_is_too_narrow_and_few_things_are_called_lost_that_are_not(name: str, prompts: int) -> None:
    """By luck alone, one table in a thousand of 400 cases is below 90 % of a true 94 %."""
    counts = shares.count_cases(shares.TRUTHS[name], prompts, 400)
    assert counts.share >= 0.90 and counts.difference >= 0.90
    assert name != "nothing" or counts.lost <= 0.05
    assert not name.startswith("a third is lost") or prompts < 32 or counts.lost >= 0.75


def test_the_usual_interval_of_a_mean_would_not_pass() -> None:
    """So that a test of the coverage can fail."""
    random, hits = np.random.default_rng(0), 0
    for _ in range(400):
        right = (random.random(16) < 0.97).astype(float)
        half = 2 * right.std(ddof=1) / 4
        hits += abs(right.mean() - 0.97) <= half
    assert hits / 400 < 0.90


def test_the_page_quotes_the_figures_and_they_hold() -> None:
    figures = json.loads(shares.FIGURES.read_text("utf-8"))
    assert published(shares.PAGE, shares.SECTION) == shares.table(figures), "run: python -m tools.coverage.shares"
    cells = [cell for by_count in figures.values() for cell in by_count.values()]
    assert all(min(cell["share"], cell["difference"]) >= 0.93 for cell in cells)
    assert all(cell["lost"] <= 0.03 for cell in figures["nothing"].values())


def test_the_page_quotes_what_the_bundled_base_finds() -> None:
    figures = json.loads(zero_shot.FIGURES.read_text("utf-8"))
    assert published(zero_shot.PAGE, zero_shot.SECTION) == zero_shot.table(figures), "run: python -m tools.zero_shot"
    own, foreign = (next(one for name, one in figures.items() if words in name) for words in ("its own", "OpenMoji"))
    assert own["ours"] >= 0.95 and foreign["ours"] > 2 * foreign["bare"] > 0 and foreign["ours"] > 3 * foreign["chance"]
