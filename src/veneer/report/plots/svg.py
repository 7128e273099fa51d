"""Shapes of a drawing as data, which ``templates/drawing.svg`` turns into SVG; sizes are in units of the view box.

Colours, strokes and text sizes are in the page's style sheet, so that one drawing serves light, dark and print.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

__all__ = ["Area", "Dot", "Drawing", "Group", "Line", "Place", "Rule", "Shape", "Stripe", "Text"]

Place: TypeAlias = tuple[float, float]
"""x to the right, y downwards."""


@dataclass(frozen=True)
class Rule:
    """A straight line between two places; ``kind`` is its class in the style sheet, as of all shapes."""

    tag: ClassVar[str] = "rule"
    start: Place
    end: Place
    kind: str


@dataclass(frozen=True)
class Text:
    """A line of text.

    Attributes:
        place: where it is anchored.
        text: the words.
        kind: class in the style sheet.
        anchor: which part of it is at ``place``.
        is_upright: whether it is turned to read upwards.
    """

    tag: ClassVar[str] = "text"
    place: Place
    text: str
    kind: str
    anchor: str = "start"
    is_upright: bool = False


@dataclass(frozen=True)
class Line:
    """A line through places."""

    tag: ClassVar[str] = "line"
    places: tuple[Place, ...]
    kind: str


@dataclass(frozen=True)
class Area:
    """The area between two lines of places."""

    tag: ClassVar[str] = "area"
    low: tuple[Place, ...]
    high: tuple[Place, ...]
    kind: str

    @property
    def outline(self) -> tuple[Place, ...]:
        """Places around the area."""
        return (*self.high, *reversed(self.low))


@dataclass(frozen=True)
class Dot:
    """A dot in a wider invisible circle that a pointer finds, with the text that is shown to the pointer."""

    tag: ClassVar[str] = "dot"
    place: Place
    kind: str
    tip: str
    radius: float = 3.5


@dataclass(frozen=True)
class Stripe:
    """An invisible upright stripe with the text that is shown to a pointer over it."""

    tag: ClassVar[str] = "stripe"
    x: float
    y: float
    width: float
    height: float
    tip: str


@dataclass(frozen=True)
class Group:
    """Shapes that the style sheet treats as one."""

    tag: ClassVar[str] = "group"
    shapes: tuple[Shape, ...]


Shape: TypeAlias = "Rule | Text | Line | Area | Dot | Stripe | Group"


@dataclass(frozen=True)
class Drawing:
    """A drawing.

    Attributes:
        width: width of the view box.
        height: height of the view box.
        description: what it shows, for readers who do not see it.
        shapes: shapes, from back to front.
    """

    width: float
    height: float
    description: str
    shapes: tuple[Shape, ...]

    def all_shapes(self) -> Iterable[Shape]:
        """Yield every shape, those in groups too."""
        return _flatten(self.shapes)


def _flatten(shapes: Iterable[Shape]) -> Iterable[Shape]:
    for shape in shapes:
        if isinstance(shape, Group):
            yield from _flatten(shape.shapes)
        else:
            yield shape
