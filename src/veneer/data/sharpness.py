"""Measure how sharp a picture is, at the size at which models see pictures."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["BLURRED", "edge_width", "is_flat"]

BLURRED = 0.85
"""Width of the sharpest edges in pixels, above which a picture is blurred. Of 28 photographs and scans that come with
scikit-image and scikit-learn, 27 have at most 0.63 (the other, a micrograph out of focus, 1.8), and of the 229 bundled
drawings all have at most 0.40. Blurred by a Gaussian of 2 pixels all have at least 0.88; enlarged four times, the
photographs have at least 0.98, and 99 % of the drawings."""
_SIDE = 512
"""Pixels on the short side, at most, of what is measured: blur that the model never sees is none."""
_MOST = 4 * _SIDE * _SIDE  # pixels
_TILES, _TILE = 4, 64
"""Tiles along a side, at least, where the picture is large enough for tiles of so many pixels, at most."""
_SHARPEST = 0.1
"""Share of tiles that are at least as sharp as the width: what is in focus of a portrait before a blurred ground."""
_CLEAR = 0.1
"""Share of the clearest tile's squared gradient below which a tile's edges are not looked at."""
_FAINT = 4.0
"""Squared gradient of a tile, levels of 255, below which there is no edge in it."""
_ROUNDING = 1 / 12
"""Variance that rounding to whole levels adds to a pixel."""
_SMALLEST = 32  # pixels on the short side
_FLAT = 8  # levels of 255


def is_flat(image: Image.Image) -> bool:
    """Check whether a picture is of one colour, up to a few levels."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # which would copy the pixels of one that is
    extrema = rgb.getextrema()
    return all(int(high) - int(low) <= _FLAT for low, high in extrema)  # type: ignore[misc]


def edge_width(image: Image.Image) -> float | None:
    """Return the width of a picture's sharpest edges, in pixels of the picture at a short side of 512 at most.

    An edge that a Gaussian of width s has blurred has the gradient g(x) ~ exp(-x^2 / 2 s^2), of which the integral of
    g^2 is 2 s^2 times that of its derivative's square. So the square root of half the ratio of the squared gradient to
    the squared Laplacian is s, whatever the contrast and the number of edges.

    Returns:
        Infinity if there is no edge; None if the picture is too small to tell.
    """
    if min(image.size) < _SMALLEST:
        return None
    grey = np.asarray(_seen(image).convert("L"), np.float32)
    gradient, curvature = _tile_means(*_derivatives(grey))
    # the sums of the squared weights of the differences: 4 of 1/2, and 4 of 1 with one of 4
    gradient, curvature = gradient - 1 * _ROUNDING, np.maximum(curvature - 20 * _ROUNDING, 1e-6)
    clear = gradient >= max(_CLEAR * float(gradient.max()), _FAINT)
    if not clear.any():
        return math.inf
    return float(np.quantile(np.sqrt(gradient[clear] / (2 * curvature[clear])), _SHARPEST))


def _seen(image: Image.Image) -> Image.Image:
    """Return a picture at the size at which it is measured; of a very long one the middle."""
    scale = min(1.0, _SIDE / min(image.size))
    most = max(1, _MOST // round(min(image.size) * scale))
    sides = [(whole, min(round(whole * scale), most)) for whole in image.size]
    if all(whole == side for whole, side in sides):
        return image
    (left, right), (top, bottom) = (_middle(whole, side / scale) for whole, side in sides)
    size = sides[0][1], sides[1][1]
    return image.resize(size, Image.Resampling.LANCZOS, box=(left, top, right, bottom))


def _middle(whole: int, part: float) -> tuple[float, float]:
    part = min(part, whole)
    return (whole - part) / 2, (whole + part) / 2


def _derivatives(grey: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the squared gradient and the squared Laplacian of a picture (H, W), each (H-2, W-2)."""
    left, right, up, down = grey[1:-1, :-2], grey[1:-1, 2:], grey[:-2, 1:-1], grey[2:, 1:-1]
    laplacian = left + right + up + down - 4 * grey[1:-1, 1:-1]
    return ((right - left) / 2) ** 2 + ((down - up) / 2) ** 2, laplacian**2


def _tile_means(*maps: NDArray[np.floating]) -> tuple[NDArray[np.floating], ...]:
    height, width = maps[0].shape
    tile = min(_TILE, min(height, width) // _TILES)
    rows, columns = height // tile, width // tile
    cut = (one[: rows * tile, : columns * tile].reshape(rows, tile, columns, tile) for one in maps)
    return tuple(one.mean(axis=(1, 3)).ravel() for one in cut)
