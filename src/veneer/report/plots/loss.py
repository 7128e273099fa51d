"""The plot of the training loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from veneer.report.content import CurvePoint, LossCurve
from veneer.report.formatting import number
from veneer.report.plots.axes import Axis, Frame, axes, ticks
from veneer.report.plots.svg import Area, Drawing, Line, Shape, Stripe

__all__ = ["has_losses", "loss_plot"]

_SIZE = (400.0, 240.0)
_MAX_STRIPES = 120
"""Stripes that show a pointer the loss of a long curve."""
_CUT_SHARE = 0.02
"""Share of the highest and of the lowest losses that may leave the plot, so that one wild step does not flatten it."""


def has_losses(curve: LossCurve) -> bool:
    """Return whether a curve has any finite loss to draw."""
    return any(point.loss is not None for point in curve.points)


def loss_plot(curve: LossCurve) -> Drawing:
    """Return the training loss by step, raw and smoothed; the curve must have a finite loss."""
    points = [point for point in curve.points if point.loss is not None and point.smoothed is not None]
    losses = [value for point in points for value in (point.loss, point.smoothed) if value is not None]
    span = _main_range(losses)
    frame = Frame.within(_SIZE, (0, curve.points[-1].step), span)
    steps, end = f"{curve.points[-1].step:,}", number(points[-1].smoothed or 0)
    shapes = [
        *axes(frame, Axis("step", lambda value: f"{value:,.0f}"), Axis("loss", _distinct_digits(span))),
        _raw(points, frame, curve.steps_per_point),
        Line(_places(points, [point.smoothed for point in points], frame), "first"),
        *_stripes(points, frame),
    ]
    return Drawing(*_SIZE, f"Training loss over {steps} steps; smoothed, it ends at {end}.", tuple(shapes))


def _main_range(values: Sequence[float]) -> tuple[float, float]:
    ranked = sorted(values)
    cut = int(_CUT_SHARE * len(ranked))
    low, high = ranked[cut], ranked[-1 - cut]
    margin = 0.05 * (high - low)
    return max(low - margin, 0.0) if low >= 0 else low - margin, high + margin


def _raw(points: Sequence[CurvePoint], frame: Frame, steps_per_point: int) -> Shape:
    """Return single steps as a thin line; points of several steps as the area between lowest and highest loss."""
    if steps_per_point == 1:
        return Line(_places(points, [point.loss for point in points], frame), "raw")
    low = _places(points, [point.low for point in points], frame)
    return Area(low, _places(points, [point.high for point in points], frame), "raw")


def _places(
    points: Sequence[CurvePoint], losses: Sequence[float | None], frame: Frame
) -> tuple[tuple[float, float], ...]:
    """Return the places of losses; those beyond the plot end at its edge."""
    steps = (point.step for point in points)
    return frame.places([(step, frame.y.clip(loss or 0.0)) for step, loss in zip(steps, losses, strict=True)])


def _stripes(points: Sequence[CurvePoint], frame: Frame) -> list[Shape]:
    stride = max(1, math.ceil(len(points) / _MAX_STRIPES))
    width = (frame.x.end - frame.x.start) / max(1, len(points)) * stride
    top, height = frame.y.end, frame.y.start - frame.y.end
    return [Stripe(frame.x(point.step) - width / 2, top, width, height, _tip(point)) for point in points[::stride]]


def _tip(point: CurvePoint) -> str:
    return f"step {point.step:,}: loss {number(point.loss or 0)}, smoothed {number(point.smoothed or 0)}"


def _distinct_digits(span: tuple[float, float]) -> Callable[[float], str]:
    """Return the format of ticks with as many digits as they differ in."""
    marks = ticks(*span) if span[1] > span[0] else [span[0]]
    step = marks[1] - marks[0] if len(marks) > 1 else abs(span[0]) or 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return lambda value: number(value, f".{digits}f")
