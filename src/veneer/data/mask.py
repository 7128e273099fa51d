"""Masks of pictures: white is learned, black is not, as kohya's scripts, OneTrainer and ai-toolkit have it.

A mask is a grey picture of its own, or the alpha channel of the picture that it belongs to. Nothing of it is a colour:
profiles and gamma are passed over, for its numbers are weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from veneer.data.augment import Box
from veneer.data.decode import opened, to_8_bits, upright
from veneer.data.unreadable import Unreadable

__all__ = ["area_average", "decode_alpha", "decode_mask", "mean_of"]

_COLOUR = 24
"""Levels of 255 by which the channels of a grey picture may differ, as JPEG makes them."""
_COLOURED_SHARE = 0.001
"""Share of pixels that may differ by more."""


def decode_mask(content: bytes) -> Image.Image:
    """Decode a mask's own file to 8-bit grey, upright; what is transparent in it is black.

    Raises:
        Unreadable: it is no picture, in colours, or so dark that nothing would be learned.
    """
    with opened(content) as image:
        turned = upright(to_8_bits(image), image)
        if turned.has_transparency_data:
            rgba = turned.convert("RGBA")
            turned = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
        mask = _grey(turned)
    brightest = mask.getextrema()[1]
    if brightest == 0:
        raise Unreadable("black, so nothing would be learned: white is learned, black is not")
    if brightest == 1:
        raise Unreadable("its brightest value is 1 of 255: multiply it by 255, for white is learned")
    return mask


def _grey(image: Image.Image) -> Image.Image:
    rgb_HW3 = np.asarray(image.convert("RGB"))
    if image.mode not in ("1", "L"):
        apart_HW = rgb_HW3.max(axis=2) - rgb_HW3.min(axis=2)
        if (apart_HW > _COLOUR).mean() > _COLOURED_SHARE:
            raise Unreadable("in colours, and a mask is grey: white is learned, black is not")
    return Image.fromarray(rgb_HW3).convert("L")


def decode_alpha(content: bytes) -> Image.Image | None:
    """Decode a picture's alpha channel to 8-bit grey, upright; None where no pixel is transparent.

    Raises:
        Unreadable: the picture cannot be decoded, or is transparent everywhere.
    """
    with opened(content) as image:
        if not image.has_transparency_data or image.mode.startswith("I"):
            return None
        alpha = upright(image.convert("RGBA").getchannel("A"), image)
    low, high = alpha.getextrema()
    if high == 0:
        raise Unreadable("transparent everywhere, so nothing would be learned")
    return None if low == 255 else alpha


def mean_of(mask: Image.Image) -> float:
    """Return the mean of a mask in [0, 1]: the share of the picture that is learned."""
    counts = mask.histogram()
    return sum(level * count for level, count in enumerate(counts)) / 255 / sum(counts)


def area_average(mask: Image.Image, box: Box, rows: int, columns: int) -> NDArray[np.float32]:
    """Return the mean of a mask over each cell of a grid over a box, (rows, columns) in [0, 1].

    Each is the exact integral over the cell by its area, where a pixel is a unit square of one value, so a cell that
    begins within a pixel has a part of it.
    """
    left, top, right, bottom = box
    down = _means(np.asarray(mask), np.linspace(top, bottom, rows + 1))
    cells = _means(down.T, np.linspace(left, right, columns + 1)).T
    averages: NDArray[np.float32] = (cells / 255).clip(0, 1).astype(np.float32)
    return averages


def _means(values: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of values (N, ...) between edges along the first axis, (edges - 1, ...)."""
    # an edge between two pixels is that exactly, else cells beyond it would have some 1e-16 of what is before it
    edges = edges.round(9).clip(0, len(values))
    first = np.minimum(edges.astype(np.int64), len(values) - 1)
    starts, place = np.unique(first, return_inverse=True)
    between = np.add.reduceat(values, starts, axis=0, dtype=np.float64)[:-1]
    before = np.concatenate([np.zeros((1, *between.shape[1:])), between.cumsum(axis=0)])
    integral = before[place] + (edges - first)[:, None] * values[first]
    means: NDArray[np.float64] = np.diff(integral, axis=0) / np.diff(edges)[:, None]
    return means
