"""The loss: parameterisation x density of times x weighting, composed over a base's noise process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from veneer.config.load import ObjectiveDefaults, complete_objective
from veneer.config.objective_config import ObjectiveConfig
from veneer.family.protocol import Conditioning, NoiseProcess
from veneer.objective.density import ShiftOf, TimestepDensity
from veneer.objective.masking import masked_mean_B, place_weights
from veneer.objective.weighting import WEIGHTINGS

__all__ = ["Objective", "Predict", "Trained"]


class Trained(ObjectiveDefaults, Protocol):
    """A base as an objective depends on it; ``veneer.family.protocol.Family`` is one."""

    @property
    def noise(self) -> NoiseProcess:
        """The way to noise that the base was trained with."""

    @property
    def trained_times(self) -> tuple[float, float]:
        """The range of times in which the denoiser that is trained removes noise."""

    def resolution_shift(self, height: int, width: int, frames: int = 1) -> float:
        """Return the base's own shift of times for a picture's size in pixels, and its frames.

        Raises:
            UserError: it has none.
        """


Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""(noisy latents, times t_B, conditioning) -> prediction, as ``Family.predict``."""


@dataclass(frozen=True)
class Objective:
    """Denoising score matching, or flow matching, under one noise process.

    Attributes:
        process: the base's, which also says what the network predicts.
        density: what times are drawn from.
        weighting: weight of each time's loss, a key of ``weighting.WEIGHTINGS``.
        gamma: cap of the signal-to-noise ratio under ``min_snr``.
        unmasked_weight: weight of what is outside a picture's mask.
        normalize_masked_area: whether a masked loss is a mean over what its weights leave, or over the whole picture.
    """

    process: NoiseProcess
    density: TimestepDensity = field(default_factory=TimestepDensity)
    weighting: str = "none"
    gamma: float = 5.0
    unmasked_weight: float = 0.0
    normalize_masked_area: bool = True

    @classmethod
    def from_config(cls, config: ObjectiveConfig, base: Trained) -> Objective:
        """Return the objective that a config asks for, on a base.

        Raises:
            UserError: the config asks for what the base has not, or for the shape of another density.
        """
        config = complete_objective(config, base)
        weighting = config.weighting, config.snr_gamma
        masking = config.unmasked_weight, config.normalize_masked_area
        return cls(base.noise, _density(config, base), *weighting, *masking)

    def times(self, numbers: Sequence[float], sizes: Sequence[tuple[int, int, int]]) -> Tensor:
        """Return times (B,), float64 in [0, 1], for uniform numbers in [0, 1) and pictures' heights, widths, frames."""
        return self.density.draw(numbers, sizes)

    def weight_B(self, t_B: Tensor) -> Tensor:
        """Return the weight of each time (B,)."""
        return WEIGHTINGS[self.weighting](self.process, t_B, self.gamma)

    def loss_B(
        self,
        predict: Predict,
        clean: Tensor,
        noise: Tensor,
        t_B: Tensor,
        conditioning: Conditioning,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted mean squared error of each row (B,), in float32 whatever the network's arithmetic.

        Args:
            predict: the denoiser.
            clean: latents (B, ...).
            noise: what is added to them, in their shape.
            t_B: how much of it: float64 in [0, 1].
            conditioning: of B rows.
            mask: how much each place of the latents counts, (B, 1, h, w) in [0, 1]; None: all count alike.
        """
        noisy = self.process.add_noise(clean, noise, t_B)
        target = self.process.target(clean, noise, t_B)
        prediction = predict(noisy, t_B, conditioning)
        error = (prediction.float() - target.float()).square()
        return self.weight_B(t_B) * self._mean_B(error, mask)

    def _mean_B(self, error: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return error.flatten(1).mean(dim=1)
        weights = place_weights(mask.float(), self.unmasked_weight)
        return masked_mean_B(error, weights, normalized=self.normalize_masked_area)


def _density(config: ObjectiveConfig, base: Trained) -> TimestepDensity:
    """Return the density of a config that is complete."""
    assert config.timestep_density is not None, "complete_objective() names it"
    shape = (config.logit_mean or 0.0, config.logit_std or 1.0)
    return TimestepDensity(config.timestep_density, *shape, _shift_of(config, base), base.trained_times)


def _shift_of(config: ObjectiveConfig, base: Trained) -> ShiftOf:
    """Return the shift by size: the base's own, or one number for all."""
    shift = config.timestep_shift
    if shift == "resolution":
        base.resolution_shift(base.resolution, base.resolution)  # a base without one is refused now
        return base.resolution_shift
    factor = shift if isinstance(shift, float) else 1.0
    return lambda height, width, frames: factor
