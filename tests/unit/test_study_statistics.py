"""A study's intervals, advice, table and plot."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from veneer.evaluate.comparison import Losses, paired_difference
from veneer.serialise import to_data, to_json
from veneer.study.plot import plot
from veneer.study.statistics import Table, TrialFailure, TrialResult, difference, tabulate
from veneer.study.tables import as_csv, as_markdown


def crossed(random: np.random.Generator, seeds: int, pictures: int, by: Sequence[float]) -> dict[int, Losses]:
    """Differences with mean 0 whose seeds, pictures and rest deviate by so much; pictures skewed, as losses are."""
    of_seed, of_picture, of_rest = by
    picture_I = of_picture * (random.gamma(4, 0.5, pictures) - 2)
    noise_SI = of_rest * random.normal(size=(seeds, pictures))
    gap_SI = of_seed * random.normal(size=(seeds, 1)) + picture_I + noise_SI
    return {seed: gap[:, None] for seed, gap in enumerate(gap_SI)}


def zeros(like: dict[int, Losses]) -> dict[int, Losses]:
    return {seed: np.zeros_like(losses) for seed, losses in like.items()}


@pytest.mark.parametrize("by", [(0, 1, 1), (0.2, 1, 1), (0.5, 1, 1), (1, 0.5, 1), (1, 0, 0.5)], ids=str)
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_the_truth(by: tuple[float, ...], seeds: int) -> None:
    """Of 500 simulated studies, in which luck is mostly that of pictures, of seeds, or of both."""
    hits = 0
    for case in range(500):
        gaps = crossed(np.random.default_rng([case, seeds]), seeds, 24, by)
        found = difference(gaps, zeros(gaps))
        assert found is not None
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / 500 <= 0.99


def test_ways_that_do_not_differ_are_told_apart_in_at_most_a_twentieth() -> None:
    hits = 0
    for case in range(400):
        gaps = crossed(np.random.default_rng([case, 9]), 3, 24, (0, 0, 1))
        found = difference(gaps, zeros(gaps))
        assert found is not None
        hits += found.excludes_zero
    assert hits <= 20


def test_one_seed_has_the_interval_over_pictures() -> None:
    gaps = crossed(np.random.default_rng(0), 1, 16, (0, 1, 1))
    found, score = difference(gaps, zeros(gaps)), paired_difference(gaps[0], np.zeros((16, 1)))
    assert found is not None
    assert (found.mean, found.low, found.high, found.seeds) == (score.mean, score.low, score.high, 1)


def test_only_seeds_that_both_have_are_compared() -> None:
    gaps = crossed(np.random.default_rng(0), 4, 16, (1, 1, 1))
    some = {seed: gaps[seed] for seed in (3, 1)}
    found, same = difference(gaps, zeros(some)), difference(some, zeros(some))
    assert found is not None and same is not None
    assert found.seeds == 2 and found.mean == pytest.approx(same.mean) and found.low == pytest.approx(same.low)
    assert difference({0: gaps[0]}, {1: gaps[1]}) is None


@given(st.integers(2, 5), st.integers(2, 12), st.integers(0, 5))
def test_pairing_is_by_picture_and_by_seed(seeds: int, pictures: int, case: int) -> None:
    """What a picture or a seed does to both ways alike changes nothing; swapping the ways changes the sign."""
    random = np.random.default_rng([seeds, pictures, case])
    one = crossed(random, seeds, pictures, (1, 1, 1))
    other = crossed(random, seeds, pictures, (1, 1, 1))
    shared = 100 * random.normal(size=(seeds, pictures, 1))
    plain = difference(one, other)
    moved = difference({s: one[s] + shared[s] for s in one}, {s: other[s] + shared[s] for s in other})
    swapped = difference(other, one)
    assert plain is not None and moved is not None and swapped is not None
    assert plain.low <= plain.mean <= plain.high
    assert (moved.mean, moved.low) == pytest.approx((plain.mean, plain.low), abs=1e-9)
    assert (swapped.mean, swapped.low) == pytest.approx((-plain.mean, -plain.high), abs=1e-9)


def test_equal_losses_differ_by_exactly_nothing() -> None:
    gaps = crossed(np.random.default_rng(0), 3, 8, (1, 1, 1))
    found = difference(gaps, gaps)
    assert found is not None
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_one_picture_tells_nothing_of_others() -> None:
    gaps = crossed(np.random.default_rng(0), 3, 1, (1, 1, 1))
    found = difference(gaps, zeros(gaps))
    assert found is not None and (found.low, found.high) == (-math.inf, math.inf)
    assert "one picture" in str(found) and not found.excludes_zero


SIZES = {"rank 1": 1000, "rank 2": 2000, "rank 8": 8000}


def centered(random: np.random.Generator, deviation: float) -> Losses:
    """Twenty numbers with mean 0, (20, 1)."""
    numbers: Losses = deviation * random.normal(size=(20, 1))
    return numbers - numbers.mean()


def study(losses: dict[str, float], seeds: int = 3, noise: float = 0.01, **more: object) -> Table:
    """A table of three ranks with exactly these mean losses, on 20 pictures that differ much more; the base's is 1."""
    random = np.random.default_rng(5)
    pictures_I = centered(random, 0.3)
    outcomes = [
        TrialResult(name, seed, SIZES[name], 4 * SIZES[name], loss + pictures_I + centered(random, noise), 2.0)
        for name, loss in losses.items()
        for seed in range(seeds)
    ]
    told = {"reference": "rank 8", **more}
    return tabulate(outcomes, 1 + pictures_I, seeds=range(seeds), **told)  # type: ignore[arg-type]


def test_the_smallest_that_loses_nothing_is_advised() -> None:
    advice = study({"rank 1": 0.7, "rank 2": 0.5, "rank 8": 0.5}).advice
    assert advice is not None and advice.smallest == "rank 2"
    assert "rank 1" not in advice.equals
    assert "loses nothing against rank 8 is rank 2" in advice.text and "would tell" not in advice.text


def test_a_loss_beyond_the_margin_is_not_nothing_even_where_the_interval_has_zero() -> None:
    losses = {"rank 1": 0.7, "rank 2": 0.53, "rank 8": 0.5}
    wide = study(losses, noise=0.3)
    gap = wide.rows[1].versus_reference
    assert gap is not None and gap.low < 0 < gap.high
    assert wide.advice is not None and wide.advice.smallest == "rank 8"
    assert study(losses, noise=0.5, margin=0.5).advice.smallest != "rank 8"  # type: ignore[union-attr]


def test_what_the_interval_does_not_exclude_is_said() -> None:
    advice = study({"rank 1": 0.7, "rank 2": 0.5, "rank 8": 0.5}, noise=0.1).advice
    assert advice is not None and advice.smallest == "rank 2" and "more pictures or seeds would tell" in advice.text


def test_a_loss_within_the_margin_is_not_nothing_where_the_interval_excludes_zero() -> None:
    advice = study({"rank 1": 0.7, "rank 2": 0.508, "rank 8": 0.5}, noise=0.001).advice
    assert advice is not None and advice.smallest == "rank 8"


def test_nothing_is_advised_where_the_reference_does_not_help() -> None:
    advice = study({"rank 1": 1.0, "rank 2": 1.0, "rank 8": 1.0}).advice
    assert advice is not None and advice.smallest is None and "not shown to help" in advice.text


def test_the_best_is_named_with_those_that_are_not_told_apart() -> None:
    advice = study({"rank 1": 0.7, "rank 2": 0.5, "rank 8": 0.5}).advice
    assert advice is not None and {advice.best, *advice.equals} == {"rank 2", "rank 8"}
    clear = study({"rank 1": 0.7, "rank 2": 0.5, "rank 8": 0.4}).advice
    assert clear is not None and (clear.best, clear.equals) == ("rank 8", ()) and "told apart" in clear.text


def test_few_seeds_and_a_chosen_reference_are_said() -> None:
    losses = {"rank 1": 0.7, "rank 2": 0.5, "rank 8": 0.5}
    texts = {seeds: study(losses, seeds).advice.text for seeds in (1, 2, 3)}  # type: ignore[union-attr]
    assert "One training each" in texts[1] and "Two seeds" in texts[2]
    assert not any(word in texts[3] for word in ("One training", "Two seeds", "flatters"))
    chosen = study(losses, reference=None)
    assert chosen.reference == chosen.advice.best and "flatters" in chosen.advice.text  # type: ignore[union-attr]


def test_where_none_is_smaller_none_is_said_to_lose() -> None:
    advice = study({"rank 1": 0.5, "rank 2": 0.5, "rank 8": 0.4}, reference="rank 1").advice
    assert advice is not None and advice.smallest == "rank 1"
    assert "None is smaller than rank 1" in advice.text and "loses" not in advice.text


def done_with(*ways: tuple[str, float, tuple[int, ...]]) -> Table:
    """Ways by name, loss and the seeds that are done."""
    return tabulate(
        [
            TrialResult(name, seed, SIZES[name], 9, np.full((5, 1), loss))
            for name, loss, seeds in ways
            for seed in seeds
        ],
        np.ones((5, 1)),
        seeds=(0, 1),
        reference="rank 8",
    )


def test_what_shares_no_seed_is_not_said_to_lose() -> None:
    reference = ("rank 8", 0.5, (0,))
    alone = done_with(("rank 1", 0.5, (1,)), reference).advice
    assert alone is not None and alone.smallest is None and "loses" not in alone.text
    assert "Not compared with rank 8, for no seed is done of both: rank 1." in alone.text
    worse = done_with(("rank 1", 0.5, (1,)), ("rank 2", 0.7, (0,)), reference).advice
    assert worse is not None and worse.smallest == "rank 8"
    assert "Every smaller one that is compared loses" in worse.text and "of both: rank 1." in worse.text
    equal = done_with(("rank 1", 0.5, (1,)), ("rank 2", 0.5, (0,)), reference).advice
    assert equal is not None and equal.smallest == "rank 2" and "of both: rank 1." in equal.text


def test_what_shares_no_seed_with_the_best_is_not_told_apart_from_it() -> None:
    none = done_with(("rank 1", 0.7, (1,)), ("rank 8", 0.5, (0,))).advice
    some = done_with(("rank 1", 0.7, (1,)), ("rank 2", 0.7, (0,)), ("rank 8", 0.5, (0,))).advice
    assert none is not None and "told apart" not in none.text and "Not compared with rank 8" in none.text
    assert some is not None and "every other that has a seed in common with it is told apart" in some.text


def test_alike_sizes_have_no_smallest() -> None:
    rows = study({"rank 1": 0.7, "rank 2": 0.5, "rank 8": 0.5})
    alike = [TrialResult(r.point, s, 1000, 4000, np.full((5, 1), v)) for r in rows.rows for s, v in r.losses.items()]
    advice = tabulate(alike, np.ones((5, 1)), seeds=(0, 1, 2), reference="rank 8").advice
    assert advice is not None and advice.smallest is None and "smallest" not in advice.text


def test_markdown_has_every_way_and_every_failure() -> None:
    failed = [TrialFailure("rank 64", 1, "out of memory")]
    lines = as_markdown(study({"rank 1": 0.7, "rank 8": 0.5}, failures=failed)).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in lines if line.startswith("| ")}
    assert cells["point"][:2] == ["point", "parameters"] and "against rank 8" in cells["point"]
    assert cells["rank 1"][1] == "1,000" and cells["rank 1"][-1] == "4.00 KB" and cells["rank 1"][-3] == "2 s"
    assert len({len(line) for line in cells.values()}) == 1
    assert "- not done: rank 64, seed 1: out of memory" in lines
    assert "20 pictures held out" in lines[-1] and "two-way" in lines[-1]


def test_json_and_csv_say_the_same() -> None:
    table = study({"rank 1": 0.7, "rank 8": 0.5}, seeds=1)
    plain = json.loads(to_json(table))
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert [row["point"] for row in rows] == [row["point"] for row in plain["rows"]] == ["rank 1", "rank 8"]
    assert float(rows[0]["versus_reference_mean"]) == plain["rows"][0]["versus_reference"]["mean"]
    assert float(rows[0]["loss"]) == plain["rows"][0]["loss"] == table.rows[0].loss
    assert rows[1]["versus_reference_mean"] == "" and plain["rows"][1]["versus_reference"] is None
    one = tabulate([TrialResult("a", 0, 1, 1, np.ones((1, 1)))], np.ones((1, 1)), seeds=[0])
    assert to_data(one)["rows"][0]["versus_base"]["low"] is None and ",," in as_csv(one)


def test_the_plot_is_a_picture_that_repeats() -> None:
    table = study({"rank 1": 0.7, "rank 2": 0.5, "rank 8": 0.5})
    content = plot(table, "a study")
    picture = Image.open(io.BytesIO(content))
    assert picture.width == 1500 and picture.format == "PNG"
    assert plot(table, "a study") == content
    assert plot(study({"rank 1": 0.6, "rank 2": 0.5, "rank 8": 0.5}), "a study") != content
