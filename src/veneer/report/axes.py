"""A small drawing of SVG: axes with round ticks, lines, bands, marks; sizes are in units of the view box.

Colours, strokes and the size of text are the page's style, so that one drawing serves light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from veneer.report.markup import Markup, element, joined, text

__all__ = ["Frame", "Scale", "axes", "band", "drawing", "line", "mark", "place", "ticks", "words"]

_TICKS = 5


@dataclass(frozen=True)
class Scale:
    """From values to places.

    Attributes:
        low: value at ``start``.
        high: value at ``end``.
        start: place.
        end: place.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Frame:
    """The part of a drawing that the axes enclose.

    Attributes:
        x: scale to the right.
        y: scale; its start is below.
    """

    x: Scale
    y: Scale

    @classmethod
    def of(cls, size: tuple[float, float], x: tuple[float, float], y: tuple[float, float], left: float = 50) -> Frame:
        """Of a drawing of a size, with room for the labels of both axes; ranges that are points are widened."""
        width, height = size
        return cls(Scale(*_wide(*x), left, width - 14), Scale(*_wide(*y), height - 40, 12))


def _wide(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - (abs(low) or 1) * 0.5, low + (abs(low) or 1) * 0.5)


def ticks(low: float, high: float, most: int = _TICKS) -> list[float]:
    """Round values within a range, at distances of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def drawing(size: tuple[float, float], about: str, *parts: str) -> Markup:
    """A whole SVG; ``about`` says what it shows to those who do not see it."""
    width, height = size
    return element("svg", *parts, class_="plot", viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=about)


def axes(
    frame: Frame, x_label: str, y_label: str, x_form: Callable[[float], str], y_form: Callable[[float], str]
) -> Markup:
    """Grid lines, ticks and what the axes are of."""
    x, y = frame.x, frame.y
    parts: list[str] = []
    for value in ticks(y.low, y.high):
        parts.append(_rule(x.start, y(value), x.end, y(value), "grid"))
        parts.append(words(x.start - 6, y(value) + 4, y_form(value), "tick", "end"))
    for value in ticks(x.low, x.high):
        parts.append(_rule(x(value), y.start, x(value), y.start + 4, "axis"))
        parts.append(words(x(value), y.start + 17, x_form(value), "tick", "middle"))
    parts.append(_rule(x.start, y.start, x.end, y.start, "axis"))
    parts.append(words((x.start + x.end) / 2, y.start + 34, x_label, "label", "middle"))
    middle = (y.start + y.end) / 2
    turned = element(
        "text", y_label, class_="label", text_anchor="middle", transform=f"translate(11 {middle:.1f}) rotate(-90)"
    )
    return joined([*parts, turned])


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def place(points: Sequence[tuple[float, float]], frame: Frame) -> list[tuple[float, float]]:
    """Values as places of the drawing."""
    return [(frame.x(x), frame.y(y)) for x, y in points]


def line(places: Sequence[tuple[float, float]], kind: str) -> Markup:
    """A line through places."""
    return element("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places), class_=f"line {kind}")


def band(low: Sequence[tuple[float, float]], high: Sequence[tuple[float, float]], kind: str) -> Markup:
    """What lies between two lines of places."""
    around = [*high, *reversed(low)]
    return element("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in around) + "Z", class_=f"area {kind}")


def mark(x: float, y: float, kind: str, tip: str, radius: float = 3.5) -> Markup:
    """A dot, with a wide ring around it that a pointer finds, and what the pointer is told."""
    title = element("title", tip)
    ring = element("circle", cx=x, cy=y, r=9, class_="find")
    return element("g", title, ring, element("circle", cx=x, cy=y, r=radius, class_=f"dot {kind}"))


def words(x: float, y: float, said: str, kind: str, anchor: str = "start") -> Markup:
    """A line of text."""
    return element("text", text(said), x=x, y=y, class_=kind, text_anchor=anchor)
