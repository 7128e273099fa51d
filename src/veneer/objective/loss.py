"""The loss: parameterisation x density of times x weighting, composed over a base's noise process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from veneer.config.schema import Density, ObjectiveConfig
from veneer.family.protocol import Conditioning, NoiseProcess
from veneer.objective.density import draw_times
from veneer.objective.weighting import WEIGHTINGS

__all__ = ["Objective", "Predict", "Trained"]


class Trained(Protocol):
    """A base as an objective depends on it; ``veneer.family.protocol.Family`` is one."""

    default_density: Density

    @property
    def noise(self) -> NoiseProcess:
        """The way to noise that the base was trained with."""


Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""(noisy latents, times t_B, conditioning) -> prediction, as ``Family.predict``."""


@dataclass(frozen=True)
class Objective:
    """Denoising score matching, or flow matching, under one noise process.

    Attributes:
        process: the base's, which also says what the network predicts.
        density: what times are drawn from, a key of ``density.DENSITIES``.
        weighting: weight of each time's loss, a key of ``weighting.WEIGHTINGS``.
        gamma: cap of the signal-to-noise ratio under ``min_snr``.
    """

    process: NoiseProcess
    density: str = "uniform"
    weighting: str = "none"
    gamma: float = 5.0

    @classmethod
    def from_config(cls, config: ObjectiveConfig, base: Trained) -> Objective:
        """Return the objective that a config asks for, on a base."""
        density = config.timestep_density or base.default_density
        return cls(base.noise, density, config.weighting, config.snr_gamma)

    def times(self, uniform_B: Tensor) -> Tensor:
        """Return times (B,), float64 in [0, 1], for uniform numbers in [0, 1)."""
        return draw_times(self.density, uniform_B)

    def weight_B(self, t_B: Tensor) -> Tensor:
        """Return the weight of each time (B,)."""
        return WEIGHTINGS[self.weighting](self.process, t_B, self.gamma)

    def loss_B(self, predict: Predict, clean: Tensor, noise: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the weighted mean squared error of each row (B,), in float32 whatever the network's arithmetic.

        Args:
            predict: the denoiser.
            clean: latents (B, ...).
            noise: what is added to them, in their shape.
            t_B: how much of it: float64 in [0, 1].
            conditioning: of B rows.
        """
        noisy = self.process.add_noise(clean, noise, t_B)
        target = self.process.target(clean, noise, t_B)
        prediction = predict(noisy, t_B, conditioning)
        error_B = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
        return self.weight_B(t_B) * error_B
