"""What decoding a clip once, from its first frame to its last one, tells of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from veneer.data.clip import frames_of
from veneer.data.clip_decode import ClipFrame
from veneer.data.duplicates import THUMB, Thumb
from veneer.data.manifest import content_id
from veneer.data.seen import Look, Seen
from veneer.data.sharpness import edge_width, is_flat

__all__ = ["see_clip"]

_MOST = 16
"""Frames that are looked at, at most; of a longer clip every other one is let go, again and again."""
_PLACES = (0.0, 1 / 3, 2 / 3, 1.0)
"""Where in a clip the frames are of which its thumbnail has a quarter each: clips that begin alike are not the same."""
_UNEVEN = 1.5
"""Times that the longest distance of two frames is of the shortest from where on a rate is said to vary."""


@dataclass(frozen=True)
class _Glimpse:
    """What is kept of a frame.

    Attributes:
        cells: it, of half a thumbnail's cells along a side.
        size: its width and height.
        edge_width: see :func:`~veneer.data.sharpness.edge_width`.
        is_flat: whether it is of one colour.
    """

    cells: Thumb
    size: tuple[int, int]
    edge_width: float | None
    is_flat: bool

    @classmethod
    def of(cls, image: Image.Image) -> _Glimpse:
        cells = np.asarray(image.resize((THUMB // 2, THUMB // 2), Image.Resampling.BOX))
        return cls(cells, image.size, edge_width(image), is_flat(image))


def see_clip(content: bytes, background: tuple[int, int, int]) -> Seen:
    """Decode a clip and keep what is to be known of it.

    Raises:
        Unreadable: it cannot be used.
    """
    remarks: list[str] = []
    conversions: list[str] = []
    times: list[float] = []
    glimpses = _glimpses(frames_of(content, background, remarks, conversions), times)
    rate = (len(times) - 1) / times[-1] if len(times) > 1 else 1.0
    steps = np.diff(times)
    if len(steps) and steps.max() > _UNEVEN * steps.min():
        conversions.append("of frames at uneven distances, of which those nearest in time are taken")
    widths = [one.edge_width for one in glimpses if one.edge_width is not None]
    look = Look(tuple(conversions), min(widths, default=None), all(one.is_flat for one in glimpses))
    thumb = _thumb(glimpses).tobytes()
    return Seen(content_id(content), *glimpses[0].size, thumb, tuple(remarks), look, len(times), rate)


def _glimpses(frames: Iterator[ClipFrame], times: list[float]) -> list[_Glimpse]:
    """Return glimpses of frames at even distances, the first one's among them, and fill in the times of all."""
    kept: list[_Glimpse] = []
    step = 1
    for number, frame in enumerate(frames):
        times.append(frame.time)
        if number % step == 0:
            kept.append(_Glimpse.of(frame.image()))
        if len(kept) > _MOST:
            kept, step = kept[::2], 2 * step
    return kept


def _thumb(glimpses: list[_Glimpse]) -> Thumb:
    """Return a thumbnail of four frames, side by side and below each other."""
    first, second, third, last = (glimpses[round(place * (len(glimpses) - 1))].cells for place in _PLACES)
    return np.concatenate([np.concatenate([first, second], 1), np.concatenate([third, last], 1)])
