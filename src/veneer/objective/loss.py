"""The loss: parameterisation x density of timesteps x weighting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from veneer.config.schema import ObjectiveConfig
from veneer.family.protocol import NoiseSchedule
from veneer.objective.density import add_noise, draw_timesteps
from veneer.objective.prediction import target_of
from veneer.objective.weighting import WEIGHTINGS

__all__ = ["Objective", "Predict"]

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noisy_BCHW, timestep_idx_B, conditioning_BLD) -> prediction_BCHW, as ``Family.predict``."""


@dataclass(frozen=True)
class Objective:
    """Denoising score matching under one schedule.

    Attributes:
        schedule: the base's forward process, and what it predicts.
        density: what timesteps are drawn from, a key of ``noise.DENSITIES``.
        weighting: weight of each timestep, a key of ``weight.WEIGHTINGS``.
        gamma: cap of the signal-to-noise ratio under ``min_snr``.
    """

    schedule: NoiseSchedule
    density: str = "uniform"
    weighting: str = "none"
    gamma: float = 5.0

    @classmethod
    def from_config(cls, config: ObjectiveConfig, schedule: NoiseSchedule) -> Objective:
        """The objective that a config asks for."""
        return cls(schedule, config.timestep_density, config.weighting, config.snr_gamma)

    def timesteps(self, uniform_B: Tensor) -> Tensor:
        """Timesteps (B,) for uniform numbers in [0, 1)."""
        return draw_timesteps(self.density, uniform_B, len(self.schedule.alphas_cumprod_T))

    def weight_B(self, timestep_idx_B: Tensor) -> Tensor:
        """Weight of each timestep (B,)."""
        return WEIGHTINGS[self.weighting](self.schedule, timestep_idx_B, self.gamma)

    def loss_B(
        self,
        predict: Predict,
        latent_BCHW: Tensor,
        noise_BCHW: Tensor,
        timestep_idx_B: Tensor,
        conditioning_BLD: Tensor,
    ) -> Tensor:
        """Weighted mean squared error of each picture (B,), in float32 whatever the network's arithmetic."""
        noisy_BCHW = add_noise(self.schedule, latent_BCHW, noise_BCHW, timestep_idx_B)
        target_BCHW = target_of(self.schedule, latent_BCHW, noise_BCHW, timestep_idx_B)
        prediction_BCHW = predict(noisy_BCHW, timestep_idx_B, conditioning_BLD)
        error_B = (prediction_BCHW.float() - target_BCHW.float()).square().flatten(1).mean(dim=1)
        return self.weight_B(timestep_idx_B) * error_B
