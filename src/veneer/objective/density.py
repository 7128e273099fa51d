"""The density that a training's times are drawn from: a base density, then a shift towards the noise.

Numbers are drawn one at a time in Python's floats, so that a time has the same bits alone as in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType

import torch
from torch import Tensor

__all__ = [
    "DENSITIES",
    "ShiftOf",
    "TimestepDensity",
    "apply_shift",
    "high_noise",
    "logit_normal",
    "no_shift",
    "uniform",
]

ShiftOf = Callable[[int, int, int], float]
"""The shift of a picture's times by its height and width in pixels and its frames, of which a picture has 1."""

_NORMAL = NormalDist()
_BELOW_ONE = math.nextafter(1, 0)


def uniform(number: float, mean: float = 0.0, std: float = 1.0) -> float:
    """Apply the inverse CDF of the uniform density on [0, 1): every time alike (Ho et al. 2020, algorithm 1)."""
    return number


def high_noise(number: float, mean: float = 0.0, std: float = 1.0) -> float:
    """Apply the inverse CDF of p(t) = 2 t on [0, 1): the later of two uniform times, so 3 of 4 are above 1/2."""
    return math.sqrt(number)


def logit_normal(number: float, mean: float = 0.0, std: float = 1.0) -> float:
    """Apply the inverse CDF of the density under which logit(t) is normal (Esser et al. 2024, eq. 19)."""
    if number == 0:
        return 0.0
    return _sigmoid(mean + std * _NORMAL.inv_cdf(number))


def _sigmoid(logit: float) -> float:
    """Return 1 / (1 + exp(-logit)), without an overflow at either end."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    exponential = math.exp(logit)
    return exponential / (1 + exponential)


DENSITIES: Mapping[str, Callable[[float, float, float], float]] = MappingProxyType(
    {"uniform": uniform, "high_noise": high_noise, "logit_normal": logit_normal}
)
"""Inverse CDFs over time, 0 clean and 1 noise, by the name in the config; mean and std are those of the logit."""


def _logit_normal_share(t: float, mean: float, std: float) -> float:
    """Return the CDF of the density under which logit(t) is normal."""
    if not 0 < t < 1:
        return min(max(t, 0.0), 1.0)
    return _NORMAL.cdf((math.log(t / (1 - t)) - mean) / std)


_SHARES: Mapping[str, Callable[[float, float, float], float]] = MappingProxyType(
    {
        "uniform": lambda t, mean, std: t,
        "high_noise": lambda t, mean, std: t * t,
        "logit_normal": _logit_normal_share,
    }
)
"""CDFs over time, by the same names."""


def apply_shift(t: float, shift: float) -> float:
    """Return shift t / (1 + (shift - 1) t): more than 1 moves times towards the noise (Esser et al. 2024, eq. 23)."""
    return t if shift == 1 else shift * t / (1 + (shift - 1) * t)


def no_shift(height: int, width: int, frames: int = 1) -> float:
    """Return 1 for a picture of any size."""
    return 1.0


@dataclass(frozen=True)
class TimestepDensity:
    """What times are drawn from.

    Attributes:
        name: a key of ``DENSITIES``.
        logit_mean: mean of logit(t) under ``logit_normal``.
        logit_std: its standard deviation.
        shift_of: the shift by height, width and frames, so that one batch may be of another size than the next.
        within: the range that it is cut to: of times outside there are none, those inside have the same proportions.
    """

    name: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift_of: ShiftOf = no_shift
    within: tuple[float, float] = (0.0, 1.0)

    def draw(self, numbers: Sequence[float], sizes: Sequence[tuple[int, int, int]]) -> Tensor:
        """Return times (B,), float64 in [0, 1].

        Args:
            numbers: uniform in [0, 1), one a picture.
            sizes: height and width of each picture in pixels, and its frames.
        """
        times = [self._time(number, self.shift_of(*size)) for number, size in zip(numbers, sizes, strict=True)]
        return torch.tensor(times, dtype=torch.float64)

    def _time(self, number: float, shift: float) -> float:
        """Return the time below which lies ``number`` of the density that is cut to ``within``."""
        density = DENSITIES[self.name]
        if self.within == (0.0, 1.0):
            return apply_shift(density(number, self.logit_mean, self.logit_std), shift)
        low, high = (self._share_below(apply_shift(end, 1 / shift)) for end in self.within)
        share = min(low + number * (high - low), _BELOW_ONE)
        t = apply_shift(density(share, self.logit_mean, self.logit_std), shift)
        return min(max(t, self.within[0]), self.within[1])

    def _share_below(self, t: float) -> float:
        """Return the share of the density, without its shift, that lies below a time: its CDF."""
        return _SHARES[self.name](t, self.logit_mean, self.logit_std)
