"""The loss curve: means of its parts with standard errors, and the gain."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.evidence import config_of, curve, evidence_of
from veneer.doctor.curve import final_loss, first_loss, lowest_loss, summarize, training_gain
from veneer.doctor.evidence import (
    Effect,
)
from veneer.doctor.measurements import effect_of
from veneer.evaluate.comparison import paired_difference


def test_stretches_cover_every_step_once() -> None:
    stretches = summarize([(n + 1, float(n), 1.0) for n in range(103)])
    assert len(stretches) == 40
    assert [one.first for one in stretches[1:]] == [one.last + 1 for one in stretches[:-1]]
    assert (stretches[0].first, stretches[-1].last) == (1, 103)


def test_parts_have_the_mean_and_the_standard_error_of_their_steps() -> None:
    losses = [1.0, 3.0] * 40
    evidence = evidence_of(loss_curve=summarize([(n + 1, loss, 1.0) for n, loss in enumerate(losses)]))
    last = final_loss(evidence)
    assert last is not None
    assert (last.first, last.last, last.loss) == (61, 80, 2.0)
    # of pairs (1, 3): standard deviation sqrt 2, so standard error 1; ten of them: 1/sqrt 10
    assert last.error == pytest.approx(10**-0.5)


def test_steps_that_are_not_finite_are_left_out() -> None:
    rows = [(n + 1, float("nan") if n % 2 else 0.5, float("nan")) for n in range(80)]
    (one, *_) = summarize(rows)
    assert (one.finite, one.loss, one.error, one.gradient) == (1, 0.5, None, None)
    assert first_loss(evidence_of(loss_curve=summarize(rows))) is not None


def test_best_is_the_lowest_quarter() -> None:
    rows = [(n + 1, abs(n - 100) / 100, 1.0) for n in range(200)]
    lowest = lowest_loss(evidence_of(loss_curve=summarize(rows)))
    assert lowest is not None and lowest.first <= 100 <= lowest.last


def test_gain_is_read_off_the_curve_where_nothing_was_measured() -> None:
    gain = training_gain(evidence_of(training=None))
    assert gain is not None
    assert gain.share == pytest.approx((0.425 - 0.6) / 0.6, abs=0.01)
    assert gain.half_width < 0.1


def test_what_one_picture_gained_is_read_off_the_curve_too() -> None:
    one = Effect(-0.5, None, None, 0.6, 0.1, 1)
    assert training_gain(evidence_of(training=one)) == training_gain(evidence_of(training=None))


@pytest.mark.parametrize("pictures", [2, 3, 5, 64])
def test_the_standard_error_is_what_the_interval_was_made_of(pictures: int) -> None:
    gains = np.random.default_rng(pictures).normal(-0.2, 0.05, pictures)
    effect = effect_of(paired_difference(0.6 + gains[:, None], np.full((pictures, 1), 0.6)))
    error = gains.std(ddof=1) / math.sqrt(pictures)
    # from four pictures on the interval is the wider one of two
    assert effect.standard_error == pytest.approx(error, rel=1e-6 if pictures < 4 else 0.35)
    assert effect.standard_error >= error * (1 - 1e-6)


def test_a_weighted_loss_is_not_held_against_the_plain_one() -> None:
    weighted = config_of(**{"objective.weighting": "min_snr"})
    gain = training_gain(evidence_of(weighted, training=None, loss_curve=curve(0.3, 0.2)))
    assert gain is not None and gain.share == pytest.approx(-0.29, abs=0.02)
