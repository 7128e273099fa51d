"""Read how large a picture is, upright, from the beginning of its file, without decoding it."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from veneer.data.decode import FORMATS, ORIENTATION, UPRIGHT
from veneer.data.location import Location

__all__ = ["upright_size"]

_HEAD = 2**18
"""Bytes that hold the size of nearly every picture, behind profiles and previews; of others all are read."""
_TURNED = frozenset(
    {
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    }
)


def upright_size(location: Location) -> tuple[int, int] | None:
    """Return a picture's width and height after the rotation that its EXIF asks for; None: it cannot be told."""
    try:
        content = location.head(_HEAD)
        found = _size(content)
        return found if found is not None or len(content) < _HEAD else _size(location.read())
    except Exception:  # files that are broken are named when they are decoded
        return None


def _size(content: bytes) -> tuple[int, int] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                # PNG's own would decode the picture, in search of EXIF behind it
                orientation = Image.Image.getexif(image).get(ORIENTATION)
        except Exception:  # Pillow raises whatever it stumbles on
            return None
    is_turned = isinstance(orientation, int) and UPRIGHT.get(orientation) in _TURNED
    return (height, width) if is_turned else (width, height)
