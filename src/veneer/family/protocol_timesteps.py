"""What a family offers for times: the way to noise, density and shift."""

from __future__ import annotations

from typing import Protocol

from veneer.config.objective_config import Density, TimestepShift
from veneer.family.noise_process import NoiseProcess

__all__ = ["FamilyTimesteps"]


class FamilyTimesteps(Protocol):
    """The times of a base."""

    default_density: Density
    """The density that timesteps are drawn from where a config names none."""
    default_logit_mean: float
    """Mean of logit(t) where a logit-normal density is asked for without one."""
    default_logit_std: float
    """Its standard deviation, likewise."""
    trained_times: tuple[float, float]
    """The range of times in which its denoiser removes noise: all of them, unless another one has the rest."""

    @property
    def noise(self) -> NoiseProcess:
        """The way to noise that the base was trained with."""

    @property
    def default_shift(self) -> TimestepShift:
        """The shift of timesteps where a config names none: a number, or ``resolution``."""

    def resolution_shift(self, height: int, width: int, frames: int = 1) -> float:
        """Return the base's own shift of timesteps for a picture, or a clip, of a height and a width in pixels.

        Raises:
            UserError: it has none that depends on the size.
        """
