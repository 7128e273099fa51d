"""Clips, whatever their files are: what is to be known of one, and the frames of it that are nearest to some times."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from PIL import Image

from veneer.data.animation import animation_frames, is_animation
from veneer.data.clip_decode import ClipFrame, decoder_release, is_video, video_frames
from veneer.data.decode import decode
from veneer.data.frame_sequence import is_sequence, sequence_frames

__all__ = ["clip_release", "frames_at", "frames_of", "is_clip", "still"]

Colour: TypeAlias = tuple[int, int, int]

DECODING = 1
"""Version of the decoding of clips, part of the keys of cached latents: raise it when pixels begin to differ."""
_TIE = 1e-6
"""Seconds by which two distances may differ and be the same."""


def is_clip(content: bytes) -> bool:
    """Check whether bytes are a video, an animated picture, or the frames of a folder."""
    return is_video(content) or is_sequence(content) or is_animation(content)


def clip_release() -> str:
    """Return what a clip's pixels depend on beside its bytes: releases of what decodes it."""
    return f"{DECODING} {decoder_release()}"


def frames_of(
    content: bytes, background: Colour, remarks: list[str] | None = None, done: list[str] | None = None
) -> Iterator[ClipFrame]:
    """Yield the frames of a clip in the order of their times.

    Args:
        content: the clip's bytes.
        background: that transparent frames are laid on.
        remarks: gets what a user may want to know of how it is decoded, each in some words.
        done: gets what was done to it as its file asks, likewise.

    Raises:
        Unreadable: the clip cannot be used.
    """
    if is_video(content):
        return video_frames(content, background, remarks, done)
    frames = sequence_frames if is_sequence(content) else animation_frames
    return frames(content, background, remarks, done)


def still(content: bytes, background: Colour) -> Image.Image:
    """Return a picture, or the first frame of a clip.

    Raises:
        Unreadable: it cannot be used.
    """
    if is_video(content) or is_sequence(content):
        return next(frames_of(content, background)).image()
    return decode(content, background)


def frames_at(content: bytes, background: Colour, times: Sequence[float]) -> Iterator[Image.Image]:
    """Yield for each time, rising, the frame whose time is nearest; of two as near, the earlier one.

    Args:
        content: the clip's bytes.
        background: that transparent frames are laid on.
        times: in seconds from the first frame.

    Raises:
        Unreadable: the clip cannot be used.
    """
    waiting, previous = deque(times), None
    for frame in frames_of(content, background):
        while waiting and previous is not None and waiting[0] - previous.time <= frame.time - waiting[0] + _TIE:
            yield previous.image()
            waiting.popleft()
        if not waiting:
            return
        previous = frame
    assert previous is not None, "a clip without frames is refused"
    for _ in waiting:
        yield previous.image()
