"""Put the trigger into captions: the words that call the adapter."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from functools import lru_cache

from veneer.data.sources.names import composed

__all__ = ["SEPARATORS", "holds_trigger", "with_trigger"]

SEPARATORS = (
    string.whitespace
    + ",.;"
    + "\u00a0\u2003\u3000"
    + "\uff0c\uff0e\uff1b\u3001\u3002\uff64\uff61"
    + "\u060c\u061b\u06d4\u0964"
)
"""Spaces, commas, full stops and semicolons: ASCII, fullwidth, ideographic, Arabic and Devanagari."""


def holds_trigger(text: str, trigger: str) -> bool:
    """Check whether a text holds the trigger, as words of their own in any case of letters."""
    return _pattern(trigger).search(composed(text)) is not None


@lru_cache
def _pattern(trigger: str) -> re.Pattern[str]:
    # an accented letter may be one character or two
    return re.compile(rf"(?<!\w){re.escape(composed(trigger))}(?!\w)", re.IGNORECASE)


def with_trigger(captions: Iterable[str], trigger: str | None) -> tuple[str, ...]:
    """Return captions that all hold the trigger: as words of their own in any case of letters, else after a comma.

    The comma takes the place of what a caption ends in: ``1girl, solo,`` becomes ``1girl, solo, trigger``.
    """
    if trigger is None:
        return tuple(captions)
    complete = [text if holds_trigger(text, trigger) else _joined(text, trigger) for text in captions]
    return tuple(dict.fromkeys(complete)) or (trigger,)


def _joined(caption: str, trigger: str) -> str:
    kept = caption.rstrip(SEPARATORS)
    return f"{kept}, {trigger}" if kept else trigger
