"""Elements of HTML and SVG; text becomes markup here and nowhere else, so that none is forgotten to be escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

__all__ = ["Markup", "element", "joined", "text"]

_VOID = frozenset({"img", "meta"})
Value = str | float | None


class Markup(str):
    """Text that is markup already; any other text is escaped where it becomes part of an element."""

    __slots__ = ()


def text(words: str) -> Markup:
    """Words as markup; what is markup already stays."""
    return words if isinstance(words, Markup) else Markup(escape(words, quote=False))


def joined(parts: Iterable[str], between: str = "") -> Markup:
    """Parts one after another."""
    return Markup(text(between).join(text(part) for part in parts))


def element(name: str, *children: str, **attributes: Value) -> Markup:
    """An element, such as ``element("p", "a < b", class_="note")``.

    Args:
        name: of the tag.
        children: markup, or words to be escaped.
        attributes: an underscore stands for a hyphen, one at the end keeps clear of Python's keywords; None: left out.
    """
    told = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in _VOID:
        return Markup(f"<{name}{told}>")
    return Markup(f"<{name}{told}>{joined(children)}</{name}>")


def _attribute(key: str, value: str | float) -> str:
    named = key.rstrip("_").replace("_", "-")
    said = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {named}="{escape(said)}"'
