"""The way from clean latents to noise that a base was trained with."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

__all__ = ["NoiseProcess", "Prediction"]

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
"""What a denoiser answers: the noise, v (Salimans and Ho 2022), the clean latent, or noise less clean latent."""


class NoiseProcess(Protocol):
    """The way from clean latents to noise that a base was trained with: z_t = alpha_t x + sigma_t eps.

    Times t_B are float64 (B,) in [0, 1]; latents and noise are (B, ...). What is computed lies on the times' device.
    """

    @property
    def prediction(self) -> Prediction:
        """What the denoiser answers."""

    def coefficients(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t and sigma_t, each float32 (B,)."""

    def signal_share(self, t_B: Tensor) -> Tensor:
        """Return alpha_t^2 / (alpha_t^2 + sigma_t^2), float32 (B,): the signal-to-noise ratio where nothing is 1/0."""

    def snr(self, t_B: Tensor) -> Tensor:
        """Return the signal-to-noise ratio alpha_t^2 / sigma_t^2 (B,) (Kingma et al. 2021, eq. 2)."""

    def add_noise(self, clean: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """Return z_t (B, ...)."""

    def target(self, clean: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """Return what the denoiser should answer (B, ...)."""
