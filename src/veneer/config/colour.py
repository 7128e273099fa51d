"""Colours as a config writes them."""

from __future__ import annotations

import re

__all__ = ["rgb"]

# the sixteen names of HTML 4.01, section 6.5, with both spellings of gray
_NAMES = {
    "aqua": 0x00FFFF,
    "black": 0x000000,
    "blue": 0x0000FF,
    "fuchsia": 0xFF00FF,
    "gray": 0x808080,
    "green": 0x008000,
    "grey": 0x808080,
    "lime": 0x00FF00,
    "maroon": 0x800000,
    "navy": 0x000080,
    "olive": 0x808000,
    "purple": 0x800080,
    "red": 0xFF0000,
    "silver": 0xC0C0C0,
    "teal": 0x008080,
    "white": 0xFFFFFF,
    "yellow": 0xFFFF00,
}


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a name or of ``#rrggbb``.

    Raises:
        ValueError: the colour is neither.
    """
    name = colour.strip().lower()
    if re.fullmatch("#[0-9a-f]{6}", name):
        value = int(name[1:], 16)
    elif name in _NAMES:
        value = _NAMES[name]
    else:
        raise ValueError(f"is {colour!r}, but should be #rrggbb or one of {', '.join(_NAMES)}")
    return value >> 16, value >> 8 & 255, value & 255
