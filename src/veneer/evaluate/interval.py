"""Intervals of a mean over pictures, right for few pictures, skewed losses and outliers.

A percentile bootstrap is too narrow for few pictures (Efron and Tibshirani 1993, chapter 14), and its BCa refinement
corrects the skew but not that. Each of two others is right where the other one fails:

- the studentised bootstrap, or bootstrap-t (Efron and Tibshirani 1993, section 12.5), follows the skew of losses, but
  underestimates outliers that are not among the pictures at hand;
- Student's t allows for outliers, but is symmetric, so on skewed losses it misses on one side.

The interval here reaches on each side as far as the one of them that reaches further. ``tools/coverage`` simulates how
often it covers the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veneer.rng import key

__all__ = ["LEVEL", "RESAMPLES", "Values", "difference_interval", "mean_interval", "t_quantile"]

Values = npt.NDArray[np.float64]

LEVEL = 0.95
"""Share of intervals that cover the true mean."""
RESAMPLES = 10_000
_NUMBERS_AT_ONCE = 2**18
_ROUNDING = 1e-12
"""Share of the largest value below which a deviation is the rounding error of equal values."""
_MIN_BOOTSTRAP = 4
"""Fewest pictures for the bootstrap: of three, one resample in nine is one picture thrice, whose deviation is zero, and
then the studentised quantiles are infinite."""


def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """Return the t within which ``level`` of Student's distribution lies, on both sides of zero.

    Args:
        freedom: degrees of freedom, at least 1; need not be whole.
        level: such as 0.95.
    """
    from scipy.special import stdtrit  # takes a third of a second to import, and most commands measure nothing

    assert freedom >= 1 and 0 < level < 1
    return float(stdtrit(freedom, (1 + level) / 2))


@dataclass(frozen=True)
class _Moments:
    """The mean and the squared standard error of each of many samples, (samples,)."""

    mean: Values
    error2: Values


def mean_interval(values_N: Values, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the 95 % interval of the mean over all pictures of which these are a sample.

    Args:
        values_N: one number for each picture; they are independent, so what belongs to one picture is averaged before.
        seed: of the resampling.
        resamples: number of resamples.

    Returns:
        Both ends; infinite for a single picture, which tells nothing of others.
    """
    return _interval([values_N], [1.0], seed, resamples)


def difference_interval(
    first_N: Values, second_M: Values, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the 95 % interval of the difference between the means of two independent sets of pictures.

    It is that of first less second. Student's t has Welch's degrees of freedom (Welch 1947), and each set is resampled
    by itself.
    """
    return _interval([first_N, second_M], [1.0, -1.0], seed, resamples)


def _interval(sets: Sequence[Values], weights: Sequence[float], seed: int, resamples: int) -> tuple[float, float]:
    """Return the interval of the weighted sum of the sets' means."""
    fewest = min(len(values) for values in sets)
    if fewest < 2:
        return -math.inf, math.inf
    moments = [_moments(values[None]) for values in sets]
    total = _weighted_sum(moments, weights)
    mean, error = float(total.mean[0]), math.sqrt(float(total.error2[0]))
    largest = max(float(np.abs(values).max()) for values in sets)
    if error <= _ROUNDING * largest:
        return mean, mean
    low_t, high_t = _student(moments, weights, [len(values) for values in sets])
    if fewest >= _MIN_BOOTSTRAP:
        studentised = _studentised(sets, weights, seed, resamples)
        low_t, high_t = min(low_t, studentised[0]), max(high_t, studentised[1])
    return mean - high_t * error, mean - low_t * error


def _student(moments: Sequence[_Moments], weights: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Return Student's quantiles, with the degrees of freedom of Welch (1947) where there is more than one set."""
    parts = [weight**2 * float(one.error2[0]) for one, weight in zip(moments, weights, strict=True)]
    spread = sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    t = t_quantile(sum(parts) ** 2 / spread, LEVEL)
    return -t, t


def _studentised(sets: Sequence[Values], weights: Sequence[float], seed: int, resamples: int) -> tuple[float, float]:
    """Return quantiles of (resample's mean - mean) / resample's error (Efron and Tibshirani 1993, eq. 12.20)."""
    generator = np.random.Generator(np.random.PCG64(key(seed, "bootstrap")))
    centred = [values - values.mean() for values in sets]
    # as many resamples at a time as a few megabytes hold, however many pictures there are
    rows = max(1, _NUMBERS_AT_ONCE // sum(len(values) for values in sets))
    counts = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    drawn = [_weighted_sum([_resample(values, count, generator) for values in centred], weights) for count in counts]
    mean = np.concatenate([moments.mean for moments in drawn])
    error = np.sqrt(np.concatenate([moments.error2 for moments in drawn]))
    # a resample of one picture only has no deviation: it is infinitely far off, or, in the middle, not at all
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.sort(np.where(mean == 0, 0.0, mean / error))
    tail = int(resamples * (1 - LEVEL) / 2)
    return float(t[tail]), float(t[-1 - tail])


def _resample(values_N: Values, count: int, generator: np.random.Generator) -> _Moments:
    """Return the moments of ``count`` resamples."""
    return _moments(values_N[generator.integers(len(values_N), size=(count, len(values_N)))])


def _moments(values_RN: Values) -> _Moments:
    """Return the moments of each row."""
    return _Moments(values_RN.mean(axis=1), values_RN.var(axis=1, ddof=1) / values_RN.shape[1])


def _weighted_sum(moments: Sequence[_Moments], weights: Sequence[float]) -> _Moments:
    """Return the moments of the weighted sum of independent means."""
    mean = sum((weight * one.mean for one, weight in zip(moments, weights, strict=True)), np.zeros(1))
    error2 = sum((weight**2 * one.error2 for one, weight in zip(moments, weights, strict=True)), np.zeros(1))
    return _Moments(mean, error2)
