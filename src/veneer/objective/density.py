"""The densities that a training's times are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

__all__ = ["DENSITIES", "draw_times", "high_noise", "uniform"]


def uniform(uniform_B: Tensor) -> Tensor:
    """Apply the inverse CDF of the uniform density on [0, 1): every time alike (Ho et al. 2020, algorithm 1)."""
    return uniform_B


def high_noise(uniform_B: Tensor) -> Tensor:
    """Apply the inverse CDF of p(t) = 2 t on [0, 1): the later of two uniform times, so 3 of 4 are above 1/2."""
    return uniform_B.sqrt()


DENSITIES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"uniform": uniform, "high_noise": high_noise})
"""Inverse CDFs over time, 0 clean and 1 noise, by the name that the config gives them."""


def draw_times(density: str, uniform_B: Tensor) -> Tensor:
    """Return times (B,), float64 in [0, 1], from uniform numbers in [0, 1) by the inverse CDF of ``density``."""
    return DENSITIES[density](uniform_B.double())
