"""Axes of a plot: scales from values to places, round ticks, grid lines and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from veneer.report.plots.svg import Place, Rule, Shape, Text

__all__ = ["Axis", "Frame", "Scale", "axes", "ticks"]

_MAX_TICKS = 5


@dataclass(frozen=True)
class Scale:
    """A linear scale from values to places.

    Attributes:
        low: value at ``start``.
        high: value at ``end``.
        start: place of ``low``.
        end: place of ``high``.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def clip(self, value: float) -> float:
        """Return a value, or the end of the scale that it is beyond."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Frame:
    """The part of a drawing that the axes enclose.

    Attributes:
        x: scale to the right.
        y: scale upwards: its start is at the bottom.
    """

    x: Scale
    y: Scale

    @classmethod
    def within(
        cls, size: tuple[float, float], x: tuple[float, float], y: tuple[float, float], left: float = 50
    ) -> Frame:
        """Return the frame of a drawing of a size, with room for both axes' labels; empty ranges are widened."""
        width, height = size
        return cls(Scale(*_widened(*x), left, width - 14), Scale(*_widened(*y), height - 40, 12))

    def places(self, points: Sequence[tuple[float, float]]) -> tuple[Place, ...]:
        """Return the places of points of values."""
        return tuple((self.x(x), self.y(y)) for x, y in points)


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - (abs(low) or 1) * 0.5, low + (abs(low) or 1) * 0.5)


def ticks(low: float, high: float, most: int = _MAX_TICKS) -> list[float]:
    """Return round values within a range, at distances of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


@dataclass(frozen=True)
class Axis:
    """How an axis is labelled.

    Attributes:
        label: what its values are.
        form: turns a tick's value into text.
    """

    label: str
    form: Callable[[float], str]


def axes(frame: Frame, x_axis: Axis, y_axis: Axis) -> list[Shape]:
    """Return grid lines, ticks and labels."""
    x, y = frame.x, frame.y
    shapes: list[Shape] = []
    for value in ticks(y.low, y.high):
        shapes.append(Rule((x.start, y(value)), (x.end, y(value)), "grid"))
        shapes.append(Text((x.start - 6, y(value) + 4), y_axis.form(value), "tick", "end"))
    for value in ticks(x.low, x.high):
        shapes.append(Rule((x(value), y.start), (x(value), y.start + 4), "axis"))
        shapes.append(Text((x(value), y.start + 17), x_axis.form(value), "tick", "middle"))
    shapes.append(Rule((x.start, y.start), (x.end, y.start), "axis"))
    shapes.append(Text(((x.start + x.end) / 2, y.start + 34), x_axis.label, "label", "middle"))
    shapes.append(Text((11, (y.start + y.end) / 2), y_axis.label, "label", "middle", is_upright=True))
    return shapes
