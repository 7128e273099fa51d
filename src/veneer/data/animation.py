"""Animated pictures as clips: the frames of a GIF, WebP, PNG or AVIF, each as its decoder composes it."""

from __future__ import annotations

import io
from collections.abc import Iterator

from PIL import Image

from veneer.data.clip_decode import MAX_FRAMES, ClipFrame
from veneer.data.decode import FORMATS, Notes, opened, to_srgb
from veneer.data.unreadable import Unreadable

__all__ = ["animation_frames", "is_animation"]

_ANIMATED = frozenset({"AVIF", "GIF", "PNG", "WEBP"})
"""Formats whose frames follow each other in time; those of TIFF are pages."""
_SHORTEST, _USUAL = 0.011, 0.1
"""Seconds below which a frame's duration is not meant, as browsers have it, and what it is taken for then."""


def is_animation(content: bytes) -> bool:
    """Check whether a picture's bytes have several frames that follow each other in time."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.format in _ANIMATED and bool(getattr(image, "is_animated", False))
    except Exception:  # Pillow raises whatever it stumbles on; what is wrong is said where it is decoded
        return False


def animation_frames(
    content: bytes, background: tuple[int, int, int], remarks: list[str] | None = None, done: list[str] | None = None
) -> Iterator[ClipFrame]:
    """Yield the frames of an animated picture, in order.

    Args:
        content: the file's bytes.
        background: that it is laid on where it is transparent.
        remarks: gets what a user may want to know of how it is decoded, each in some words.
        done: gets what was done to it as its file asks, likewise.

    Raises:
        Unreadable: it is broken, or too large.
    """
    with opened(content) as image:
        if image.n_frames > MAX_FRAMES:  # type: ignore[attr-defined]
            raise Unreadable(f"too long: more than {MAX_FRAMES:,} frames; cut it into clips")
        time, notes = 0.0, Notes.of(remarks, done)
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            image.load()
            own = Notes.of(None, None)
            shown = to_srgb(image, content, background, own).copy()  # the next frame is drawn over this one
            notes.add_new(own)
            yield ClipFrame(time, lambda shown=shown: shown)  # type: ignore[misc]
            time += _duration(image)


def _duration(image: Image.Image) -> float:
    seconds = float(image.info.get("duration") or 0) / 1000
    return _USUAL if seconds < _SHORTEST else seconds
