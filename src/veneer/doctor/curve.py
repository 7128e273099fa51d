"""A run's loss curve, read with its own noise: parts of it as means with standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from veneer.doctor.evidence import Effect, Evidence, Stretch
from veneer.evaluate.interval import LEVEL, t_quantile

__all__ = ["Gain", "Part", "best", "half_width", "head", "standard_error", "stretches_of", "tail", "training_gain"]

_STRETCHES = 40
_WINDOW = 0.25
_NORMAL = 1.96


@dataclass(frozen=True)
class Part:
    """The mean loss of some steps in a row.

    Attributes:
        first: step, from 1.
        last: step.
        loss: mean.
        error: its standard error; 0 where too few steps were done to tell.
    """

    first: int
    last: int
    loss: float
    error: float

    def __str__(self) -> str:
        steps = f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"
        return f"{self.loss:.4f} in {steps}"


@dataclass(frozen=True)
class Gain:
    """What an adapter gained on its training pictures, as a share of the base's loss; below 0 is better.

    Attributes:
        share: the mean.
        reach: half of its 95 % interval.
        told: where it comes from, a sentence.
    """

    share: float
    reach: float
    told: str


def stretches_of(losses: Sequence[tuple[int, float, float]], most: int = _STRETCHES) -> tuple[Stretch, ...]:
    """Sum up steps (step, loss, gradient norm) in at most so many stretches of about equal length."""
    count = len(losses)
    places = ((place * min(most, count) // count, step) for place, step in enumerate(losses))
    return tuple(_stretch([step for _, step in group]) for _, group in groupby(places, key=lambda one: one[0]))


def _stretch(steps: Sequence[tuple[int, float, float]]) -> Stretch:
    finite = np.array([loss for _, loss, _ in steps if math.isfinite(loss)])
    error = float(finite.std(ddof=1) / math.sqrt(len(finite))) if len(finite) > 1 else None
    gradient = sum(norm for _, _, norm in steps) / len(steps)
    return Stretch(
        first=steps[0][0],
        last=steps[-1][0],
        finite=len(finite),
        loss=float(finite.mean()) if len(finite) else None,
        error=error,
        gradient=gradient if math.isfinite(gradient) else None,
    )


def head(evidence: Evidence) -> Part | None:
    """The first stretch with a loss."""
    return next((part for one in evidence.stretches if (part := _part([one]))), None)


def tail(evidence: Evidence) -> Part | None:
    """The last quarter of the run."""
    return _part(evidence.stretches[-_length(evidence) :])


def best(evidence: Evidence) -> Part | None:
    """The quarter of the run, wherever it begins, in which the loss was lowest."""
    length = _length(evidence)
    starts = range(max(1, len(evidence.stretches) - length + 1))
    parts = [part for start in starts if (part := _part(evidence.stretches[start : start + length]))]
    return min(parts, key=lambda part: part.loss, default=None)


def _length(evidence: Evidence) -> int:
    return max(1, round(_WINDOW * len(evidence.stretches)))


def _part(stretches: Sequence[Stretch]) -> Part | None:
    told = [(one.finite, one.loss, one.error) for one in stretches if one.loss is not None]
    if not told:
        return None
    total = sum(finite for finite, _, _ in told)
    loss = sum(finite * loss for finite, loss, _ in told) / total
    return Part(stretches[0].first, stretches[-1].last, loss, _error(told, total))


def _error(told: Sequence[tuple[int, float, float | None]], total: int) -> float:
    """Of the mean over stretches; where one has a single step, and so no error of its own, from how far they differ."""
    errors = [error for _, _, error in told]
    if all(error is not None for error in errors):
        return math.sqrt(sum((finite * (error or 0.0)) ** 2 for finite, _, error in told)) / total
    losses = np.array([loss for _, loss, _ in told])
    return float(losses.std(ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else 0.0


def training_gain(evidence: Evidence) -> Gain | None:
    """Measured if it was, else read off the curve: its last quarter against the first steps, which are nearly the base.

    The base's own loss is no start to measure from: it is of other pictures, and of its error nothing is known but that
    of a paired difference.
    """
    measured = evidence.training
    if measured is not None and measured.low is not None:
        told = f"on training pictures the loss goes {measured.before:.4f} -> {measured.after:.4f}"
        return Gain(measured.share, half_width(measured) / measured.before, told)
    first, last = head(evidence), tail(evidence)
    if first is None or last is None or last.first == 1:
        return None
    told = f"the training loss goes {first.loss:.4f} -> {last.loss:.4f} (its last quarter)"
    reach = _NORMAL * math.hypot(last.error, first.error)
    return Gain((last.loss - first.loss) / first.loss, reach / first.loss, told)


def half_width(effect: Effect) -> float:
    """Half of its 95 % interval; infinite if that is open, for one picture tells nothing of others.

    Two effects on different pictures differ for certain by more than the root of the sum of their squares: that of
    standard errors times 2 would be crossed by luck much oftener where one is of two or three pictures.
    """
    return math.inf if effect.low is None or effect.high is None else (effect.high - effect.low) / 2


def standard_error(effect: Effect) -> float:
    """Of the paired difference, from its interval, which is Student's or wider, so rather too large."""
    width = half_width(effect)
    return width if math.isinf(width) else width / t_quantile(effect.pictures - 1, LEVEL)
