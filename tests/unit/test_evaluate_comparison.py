"""The paired difference and its interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.errors import raises_code
from veneer.evaluate.comparison import HELD_OUT, TRAINING, memorisation_gap, paired_difference, time_bands
from veneer.evaluate.results import verdict_of


def losses(pictures: int, draws: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 0.8, (pictures, draws))


def test_the_difference_is_the_mean_over_pictures() -> None:
    base = losses(12, 4)
    score = paired_difference(base - 0.125, base)
    assert score.mean == pytest.approx(-0.125)
    assert (score.low, score.high) == pytest.approx((-0.125, -0.125))  # every picture gains alike
    assert score.base - score.adapter == pytest.approx(0.125)
    assert (score.pictures, score.draws) == (12, 4)


def test_equal_losses_give_exactly_zero() -> None:
    score = paired_difference(losses(5, 3), losses(5, 3))
    assert (score.mean, score.low, score.high) == (0.0, 0.0, 0.0)


def test_the_interval_is_that_of_the_central_limit() -> None:
    """Over many pictures the bootstrap agrees with mean +- 1.96 standard errors, which resamples nothing."""
    adapter, base = losses(400, 2, seed=1), losses(400, 2, seed=2)
    score = paired_difference(adapter, base)
    by_picture = (adapter - base).mean(axis=1)
    error = by_picture.std(ddof=1) / np.sqrt(400)
    assert score.low == pytest.approx(by_picture.mean() - 1.96 * error, abs=0.06 * error)
    assert score.high == pytest.approx(by_picture.mean() + 1.96 * error, abs=0.06 * error)


def test_the_interval_of_two_pictures_is_students() -> None:
    """t of one degree of freedom is 12.7062, and the standard error is half of what the two differ by."""
    score = paired_difference(np.array([[0.1], [0.5]]), np.zeros((2, 1)))
    assert (score.mean, score.low, score.high) == pytest.approx((0.3, 0.3 - 2.54124, 0.3 + 2.54124), rel=1e-4)


def test_draws_of_one_picture_do_not_narrow_the_interval() -> None:
    """Clustered: a picture measured a hundred times is still one picture."""
    adapter, base = losses(8, 1, seed=1), losses(8, 1, seed=2)
    once = paired_difference(adapter, base)
    often = paired_difference(np.repeat(adapter, 100, axis=1), np.repeat(base, 100, axis=1))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


@settings(max_examples=25)
@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 3))
def test_the_interval_holds_the_difference_and_repeats(pictures: int, draws: int, seed: int) -> None:
    adapter, base = losses(pictures, draws, seed), losses(pictures, draws, seed + 10)
    score = paired_difference(adapter, base, seed)
    assert score.low <= score.mean <= score.high
    assert score == paired_difference(adapter, base, seed)


def test_another_seed_resamples_otherwise() -> None:
    adapter, base = losses(6, 2, seed=1), losses(6, 2, seed=2)
    assert paired_difference(adapter, base, 0) != paired_difference(adapter, base, 1)


def test_few_pictures_are_said_to_be_few() -> None:
    one = paired_difference(losses(1, 8, seed=1), losses(1, 8, seed=2))
    assert (one.low, one.high, one.verdict) == (-np.inf, np.inf, "too few pictures to tell")
    assert "one picture, too few for an interval" in str(one)
    assert "make it rough" in str(paired_difference(losses(3, 8, seed=1), losses(3, 8, seed=2)))
    assert "make it rough" not in str(paired_difference(losses(10, 8, seed=1), losses(10, 8, seed=2)))
    with raises_code("evaluate.nothing_held_out") as caught:
        paired_difference(np.zeros((0, 8)), np.zeros((0, 8)))
    caught.match(r"data\.held_out")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.3, -0.001, "better"),
        (0.001, 0.3, "worse"),
        (-0.009, 0.009, "no effect"),
        (0.0, 0.0, "no effect"),
        (-0.009, 0.011, "too few pictures to tell"),
        (-0.011, 0.0, "too few pictures to tell"),
        (-np.inf, np.inf, "too few pictures to tell"),
    ],
)
def test_an_interval_in_words(low: float, high: float, verdict: str) -> None:
    """No effect is what a hundredth of the base's loss, 1 here, has room for."""
    assert verdict_of(low, high, base=1.0) == verdict


def test_bands_are_parts_of_time_and_average_to_the_score() -> None:
    adapter, base = losses(12, 8, seed=1), losses(12, 8, seed=2)
    bands = time_bands(adapter, base)
    assert [(band.start, band.end) for band in bands] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    assert bands[1].score == paired_difference(adapter[:, 2:4], base[:, 2:4])
    assert np.mean([band.score.mean for band in bands]) == pytest.approx(paired_difference(adapter, base).mean)


@pytest.mark.parametrize(
    ("draws", "count"), [(1, 1), (2, 2), (3, 3), (5, 5), (6, 3), (7, 1), (10, 5), (12, 4), (20, 5)]
)
def test_there_are_as_many_bands_as_the_draws_fill_evenly(draws: int, count: int) -> None:
    assert len(time_bands(losses(3, draws), losses(3, draws, seed=1))) == count


def test_the_gap_is_the_difference_of_the_differences() -> None:
    base = {HELD_OUT: losses(9, 4), TRAINING: losses(14, 4, seed=1)}
    adapter = {HELD_OUT: base[HELD_OUT] - 0.1, TRAINING: base[TRAINING] - 0.3}
    gap = memorisation_gap(adapter, base)
    assert (gap.mean, gap.low, gap.high) == pytest.approx((0.2, 0.2, 0.2))
    assert (gap.held_out, gap.training) == (9, 14)
    assert "gains more on pictures it was trained on" in str(gap)
    assert "gains less" in str(memorisation_gap(base, adapter))
    same = {HELD_OUT: base[HELD_OUT] - losses(9, 4, seed=3), TRAINING: base[TRAINING] - losses(14, 4, seed=4)}
    assert "no difference can be seen" in str(memorisation_gap(same, base))
