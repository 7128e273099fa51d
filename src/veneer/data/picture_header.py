"""Read how large a picture or clip is, upright, and how long, from its file's headers, without decoding all of it."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from veneer.data.clip_decode import is_video, video_header
from veneer.data.decode import FORMATS, ORIENTATION, UPRIGHT
from veneer.data.frame_sequence import FrameSequence
from veneer.data.location import Location

__all__ = ["clip_length", "upright_size"]

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
    if isinstance(location, FrameSequence):
        return upright_size(location.frames[0])
    try:
        content = location.head(_HEAD)
        if is_video(content):
            return video_header(location.read())[:2]
        found = _size(content)
        return found if found is not None or len(content) < _HEAD else _size(location.read())
    except Exception:  # files that are broken are named when they are decoded
        return None


def clip_length(location: Location) -> tuple[int, float] | None:
    """Return how many frames a clip has, by its headers, and frames a second; None: it is none, or does not say."""
    if isinstance(location, FrameSequence):
        return len(location.frames), location.rate
    try:
        if not is_video(location.head(_HEAD)):
            return None
        return video_header(location.read())[2:]
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
