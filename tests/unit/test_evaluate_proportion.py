"""Intervals of shares, against the equations that define them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from veneer.evaluate.interval import t_quantile
from veneer.evaluate.proportion import share_difference_interval, share_interval


@given(st.integers(2, 200).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_the_ends_of_a_share_are_where_the_share_is_a_quantile_away(shares: tuple[int, int]) -> None:
    right, count = shares
    values = np.repeat([1.0, 0.0], [right, count - right])
    low, high = share_interval(values)
    assert 0 <= low <= right / count <= high <= 1
    # Wilson (1927): the ends solve (p - end)^2 = t^2 end (1 - end) / n; the spread has n - 1 degrees of freedom
    worth = count - 1 if 0 < right < count else count
    for end in (low, high):
        left = (right / count - end) ** 2
        assert left == pytest.approx(t_quantile(count - 1) ** 2 * end * (1 - end) / worth, abs=1e-12)


def test_with_many_prompts_it_is_the_usual_interval_of_wilson() -> None:
    usual = stats.binomtest(1200, 2000).proportion_ci(method="wilson")
    ours = share_interval(np.repeat([1.0, 0.0], [1200, 800]))
    assert ours == pytest.approx((usual.low, usual.high), abs=2e-4)


def test_pictures_of_a_prompt_that_all_agree_are_worth_one() -> None:
    of_one = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    assert share_interval(of_one, 4) == share_interval(of_one, 1)
    mixed = np.array([0.75, 0.5, 0.75, 0.75, 0.5, 0.75])
    assert np.diff(share_interval(mixed, 4)) < np.diff(share_interval(of_one, 4))


def test_a_difference_is_that_of_the_table_with_half_a_prompt_more_in_each_cell() -> None:
    both, only_first, only_second, neither = 20, 3, 9, 8
    differences = np.repeat([0.0, 1.0, -1.0, 0.0], [both, only_first, only_second, neither])
    total = both + only_first + only_second + neither + 2
    b, c = (only_first + 0.5) / total, (only_second + 0.5) / total
    half = t_quantile(total - 3) * math.sqrt((b + c - (b - c) ** 2) / total)
    assert share_difference_interval(differences) == pytest.approx((b - c - half, b - c + half))


def test_one_prompt_tells_nothing() -> None:
    assert share_interval(np.ones(1)) == (0, 1)
    assert share_difference_interval(np.zeros(1)) == (-1, 1)
