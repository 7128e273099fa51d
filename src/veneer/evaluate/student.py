"""Student's t distribution, for intervals from a few repetitions."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

__all__ = ["t_quantile"]

_GRID = 2**14
_MOST = 1e4  # degrees of freedom from which on the normal distribution is as good


@lru_cache(maxsize=1024)
def t_quantile(freedom: float, level: float = 0.95) -> float:
    """The t that ``level`` of the distribution lies within, on both sides of zero.

    With t = sqrt(v) tan(a) the density becomes cos(a)^(v - 1) over the bounded angle a (Abramowitz and Stegun 1964,
    26.7.3), which is summed by trapezoids.

    Args:
        freedom: v, at least 1; need not be whole.
        level: such as 0.95.
    """
    assert freedom >= 1 and 0 < level < 1
    freedom = min(freedom, _MOST)
    # beyond so many deviations nothing is left of the density, and the grid should not be wasted on it
    widest = math.pi / 2 if freedom < 200 else math.atan(12 / math.sqrt(freedom))
    angle = np.linspace(0, widest, _GRID + 1)
    density = np.cos(angle) ** (freedom - 1)
    share = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, share / share[-1], angle)))
