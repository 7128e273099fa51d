"""Small videos, written by PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

av: Any = pytest.importorskip("av")

__all__ = ["KR_KB", "flat_clip", "noise", "video"]

Frames = Sequence[NDArray[np.uint8]]
KR_KB: Mapping[int, tuple[float, float]] = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""Weights of red and blue in luma, by the number of the matrix (H.273): BT.709, BT.601, BT.2020."""


def noise(count: int = 20, height: int = 32, width: int = 48, channels: int = 3, seed: int = 0) -> Frames:
    """Return frames of noise."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8))


def video(frames: Frames, *, rate: float = 16, container: str = "matroska", **options: Any) -> bytes:
    """Return a video of RGB frames, lossless: FFV1, or what ``options`` say.

    Args:
        frames: each (H, W, 3), or (H, W, 4) with alpha.
        rate: frames a second.
        container: libav's name.
        options: ``codec``, ``pixels`` (libav's names), ``times`` in milliseconds, ``sound``, ``aspect`` of a pixel.
    """
    codec, pixels = options.get("codec", "ffv1"), options.get("pixels", "bgr0")
    source = "rgb24" if frames[0].shape[-1] == 3 else "rgba"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        if "aspect" in options:
            stream.codec_context.sample_aspect_ratio = options["aspect"]
        times = options.get("times")
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format=source)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def flat_clip(levels: Iterable[int], matrix: int, *, full: bool, pixels: str, height: int = 64) -> bytes:
    """Return a clip of one colour, by its luma and two chromas (8 bits), and how they are to be read."""
    frame: Any = av.VideoFrame(64, height, pixels)
    more = frame.format.components[0].bits - 8
    for plane, level in zip(frame.planes, levels, strict=True):
        kind = np.uint16 if more else np.uint8
        plane.update(np.full(plane.buffer_size // np.dtype(kind).itemsize, level << more, kind).tobytes())
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as file:
        stream: Any = file.add_stream("ffv1", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, height, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        for number in range(2):
            frame.pts, frame.time_base = number, Fraction(1, 16)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()
