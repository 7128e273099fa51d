"""The loss curve of a run: means of parts of it with standard errors, and the gain from its start to its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from veneer.doctor.evidence import CurveSegment, Evidence

__all__ = ["Gain", "MeanLoss", "StepLoss", "final_loss", "first_loss", "lowest_loss", "summarize", "training_gain"]

_MAX_SEGMENTS = 40
_QUARTER = 0.25
_NORMAL_QUANTILE = 1.96

StepLoss = tuple[int, float, float]
"""Step, loss, gradient norm."""


@dataclass(frozen=True)
class MeanLoss:
    """Mean loss of consecutive steps.

    Attributes:
        first: first step, from 1.
        last: last step.
        loss: mean.
        error: standard error of the mean; 0 where there are too few steps for one.
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
    """Change of the loss on training pictures by the adapter, as a share of the base's loss; below 0 is better.

    Attributes:
        share: mean.
        half_width: half the width of its 95 % interval.
        description: sentence that says which losses it is from.
    """

    share: float
    half_width: float
    description: str


def summarize(steps: Sequence[StepLoss], most: int = _MAX_SEGMENTS) -> tuple[CurveSegment, ...]:
    """Return steps summed up as at most ``most`` segments of about equal length."""
    count = len(steps)
    segments = ((place * min(most, count) // count, step) for place, step in enumerate(steps))
    return tuple(_segment([step for _, step in group]) for _, group in groupby(segments, key=lambda item: item[0]))


def _segment(steps: Sequence[StepLoss]) -> CurveSegment:
    finite = np.array([loss for _, loss, _ in steps if math.isfinite(loss)])
    error = float(finite.std(ddof=1) / math.sqrt(len(finite))) if len(finite) > 1 else None
    gradient = sum(norm for _, _, norm in steps) / len(steps)
    return CurveSegment(
        first=steps[0][0],
        last=steps[-1][0],
        finite=len(finite),
        loss=float(finite.mean()) if len(finite) else None,
        error=error,
        gradient=gradient if math.isfinite(gradient) else None,
    )


def first_loss(evidence: Evidence) -> MeanLoss | None:
    """Return the mean loss of the first segment that has one."""
    return next((loss for segment in evidence.loss_curve if (loss := _mean_loss([segment]))), None)


def final_loss(evidence: Evidence) -> MeanLoss | None:
    """Return the mean loss of the last quarter of the run."""
    return _mean_loss(evidence.loss_curve[-_quarter(evidence) :])


def lowest_loss(evidence: Evidence) -> MeanLoss | None:
    """Return the mean loss of the quarter of the run, wherever it begins, in which it is lowest."""
    curve, length = evidence.loss_curve, _quarter(evidence)
    starts = range(max(1, len(curve) - length + 1))
    losses = [loss for start in starts if (loss := _mean_loss(curve[start : start + length]))]
    return min(losses, key=lambda mean: mean.loss, default=None)


def _quarter(evidence: Evidence) -> int:
    return max(1, round(_QUARTER * len(evidence.loss_curve)))


def _mean_loss(segments: Sequence[CurveSegment]) -> MeanLoss | None:
    finite = [(segment.finite, segment.loss, segment.error) for segment in segments if segment.loss is not None]
    if not finite:
        return None
    total = sum(count for count, _, _ in finite)
    loss = sum(count * loss for count, loss, _ in finite) / total
    return MeanLoss(segments[0].first, segments[-1].last, loss, _standard_error(finite, total))


def _standard_error(segments: Sequence[tuple[int, float, float | None]], total: int) -> float:
    """Return the standard error of the mean over segments of (finite steps, loss, error).

    It is pooled from the segments' errors; where one is of a single step, and so without an error, it is taken from how
    far the segments differ.
    """
    if all(error is not None for _, _, error in segments):
        return math.sqrt(sum((count * (error or 0.0)) ** 2 for count, _, error in segments)) / total
    losses = np.array([loss for _, loss, _ in segments])
    return float(losses.std(ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else 0.0


def training_gain(evidence: Evidence) -> Gain | None:
    """Return the gain as measured, else by the curve: its last quarter against its first steps, nearly the base.

    The base's own loss is no start to compare the curve with: it is of other pictures, and only the error of a paired
    difference is known of it.
    """
    measured = evidence.training
    if measured is not None and measured.low is not None:
        description = f"on training pictures the loss goes {measured.before:.4f} -> {measured.after:.4f}"
        return Gain(measured.share, measured.half_width / measured.before, description)
    first, last = first_loss(evidence), final_loss(evidence)
    if first is None or last is None or last.first == 1:
        return None
    description = f"the training loss goes {first.loss:.4f} -> {last.loss:.4f} (its last quarter)"
    half_width = _NORMAL_QUANTILE * math.hypot(last.error, first.error)
    return Gain((last.loss - first.loss) / first.loss, half_width / first.loss, description)
