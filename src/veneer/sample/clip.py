"""Clips: frames in their order, of which a picture is one; as files they are animated WebP.

Of the formats that move it is the one that Pillow writes without an extra, with all colours and at any size, that every
browser shows as a picture, and that keeps texts. MP4 needs a codec's library and sides that 2 divides; GIF has 256
colours and times in hundredths of a second.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from PIL import Image

from veneer.files import atomic_write
from veneer.sample.sheet import sheet
from veneer.sample.timelapse import spread_evenly

__all__ = [
    "CLIP_SUFFIX",
    "Clip",
    "clip_texts",
    "contact_headings",
    "contact_sheet",
    "encode_clip",
    "middle",
    "moving_sheet",
    "write_clip",
]

Clip: TypeAlias = Sequence[Image.Image]
"""Frames in their order; one, of a picture."""
CLIP_SUFFIX = ".webp"
_DESCRIPTION = 0x010E  # EXIF's ImageDescription
_QUALITY, _EFFORT = 90, 2  # as libwebp counts them; an effort of 4 takes twice the time for 5 % fewer bytes
_SHOWN = 6  # frames of a clip on a sheet


def middle(clip: Clip) -> Image.Image:
    """Return the frame that stands for a clip where there is room for one: the middle one."""
    return clip[len(clip) // 2]


def encode_clip(clip: Clip, frame_rate: float, texts: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Return a clip as an animated WebP that begins anew when it ends.

    Args:
        clip: its frames, of one size.
        frame_rate: frames a second; WebP counts milliseconds, and frames begin at the nearest ones.
        texts: kept in its EXIF, as JSON.
    """
    begins = [round(place * 1000 / frame_rate) for place in range(len(clip) + 1)]
    durations = [after - before for before, after in pairwise(begins)]
    exif, content = Image.Exif(), io.BytesIO()
    exif[_DESCRIPTION] = json.dumps(dict(texts))
    clip[0].save(
        content,
        "WEBP",
        save_all=True,
        append_images=list(clip[1:]),
        duration=durations,
        loop=0,
        quality=_QUALITY,
        method=_EFFORT,
        exif=exif,
    )
    return content.getvalue()


def write_clip(clip: Clip, path: Path, frame_rate: float, texts: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Write a clip as :func:`encode_clip` makes it, whole or not at all; return its path.

    Raises:
        UserError: there is no room for it, or its folder cannot be written to.
    """
    atomic_write(path, encode_clip(clip, frame_rate, texts))
    return path


def clip_texts(file: Image.Image) -> Mapping[str, str]:
    """Return the texts of an opened clip.

    Raises:
        ValueError: it has none of ours.
    """
    texts = json.loads(file.getexif().get(_DESCRIPTION, ""))
    if not isinstance(texts, dict):
        raise ValueError("its description is not ours")
    return texts


def contact_headings(frames: int) -> list[str]:
    """Return the headings of a contact sheet of clips of so many frames; of pictures there are none."""
    return [f"frame {place + 1}" for place in _shown(frames)] if frames > 1 else []


def contact_sheet(clips: Sequence[Clip], labels: Sequence[str], *, cell: int) -> Image.Image:
    """Draw some frames of each clip side by side under :func:`contact_headings`, a row a clip.

    Args:
        clips: all of as many frames.
        labels: of the rows.
        cell: side of a frame on the sheet, in pixels.
    """
    frames = len(clips[0])
    rows = [[clip[place] for place in _shown(frames)] for clip in clips]
    return sheet(rows, contact_headings(frames), labels, cell=cell)


def _shown(frames: int) -> list[int]:
    return spread_evenly(range(frames), _SHOWN)


def moving_sheet(clips: Sequence[Clip], labels: Sequence[str], *, cell: int) -> list[Image.Image]:
    """Return the frames of a sheet on which all clips play, a row a clip."""
    return [sheet([[frame] for frame in frames], (), labels, cell=cell) for frames in zip(*clips, strict=True)]
