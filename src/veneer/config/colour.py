"""Read the colours that a config names."""

from __future__ import annotations

import re

__all__ = ["rgb"]


def rgb(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of a CSS colour name or of ``#rrggbb``.

    Raises:
        ValueError: the colour is neither.
    """
    from PIL import ImageColor  # here, because a config is read before anything slow is imported

    name = colour.strip().lower()
    try:
        # the other forms that Pillow takes may have transparency, or values beyond 255
        if re.fullmatch("#[0-9a-f]{6}|[a-z]+", name):
            red, green, blue = ImageColor.getrgb(name)[:3]
            return red, green, blue
    except ValueError:
        pass
    raise ValueError(f"is {colour!r}, but should be #rrggbb or a CSS colour name, such as white")
