"""Small pictures for pages that hold all that they need."""

from __future__ import annotations

import base64
import io

from PIL import Image

from veneer.data.clip import still
from veneer.data.location import Location
from veneer.data.unreadable import Unreadable

__all__ = ["thumbnail"]


def thumbnail(location: Location, background: tuple[int, int, int], side: int) -> str | None:
    """Return a picture, or the first frame of a clip, as a data URI of a JPEG; None if it cannot be read.

    Args:
        location: of the picture.
        background: that it is laid on where it is transparent.
        side: of its longer side, in pixels, at most.
    """
    try:
        image = still(location.read(), background)
    except (OSError, Unreadable):
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
