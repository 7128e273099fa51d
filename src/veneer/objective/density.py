"""The forward process and the densities that timesteps are drawn from.

Shapes: B pictures, C latent channels, H x W latent sides, T timesteps of the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from veneer.family.protocol import NoiseSchedule

__all__ = ["DENSITIES", "add_noise", "draw_timesteps", "high_noise", "signal_and_noise", "uniform"]


def uniform(uniform_B: Tensor) -> Tensor:
    """Inverse CDF of the uniform density on [0, 1): every timestep alike (Ho et al. 2020, algorithm 1)."""
    return uniform_B


def high_noise(uniform_B: Tensor) -> Tensor:
    """Inverse CDF of p(t) = 2 t on [0, 1): the later of two uniform timesteps, so 3 of 4 lie in the noisier half."""
    return uniform_B.sqrt()


DENSITIES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"uniform": uniform, "high_noise": high_noise})
"""Inverse CDFs over relative time, 0 clean and 1 noise, by the name the config gives them."""


def draw_timesteps(density: str, uniform_B: Tensor, total: int) -> Tensor:
    """Timesteps (B,), long, in [0, total), from uniform numbers in [0, 1) by the inverse CDF of ``density``."""
    t01_B = DENSITIES[density](uniform_B.double())
    # a root may round up to 1, which is one past the last timestep
    return (t01_B * total).long().clamp(max=total - 1)


def signal_and_noise(schedule: NoiseSchedule, timestep_idx_B: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t = sqrt(alpha-bar) and sigma_t = sqrt(1 - alpha-bar), each (B, 1, 1, 1), on the timesteps' device."""
    alpha_bar_B = schedule.alphas_cumprod_T.to(timestep_idx_B.device)[timestep_idx_B]
    alpha_bar_B111 = alpha_bar_B.view(-1, 1, 1, 1)
    return alpha_bar_B111.sqrt(), (1 - alpha_bar_B111).sqrt()


def add_noise(schedule: NoiseSchedule, latent_BCHW: Tensor, noise_BCHW: Tensor, timestep_idx_B: Tensor) -> Tensor:
    """z_t = alpha_t x + sigma_t eps (Ho et al. 2020, eq. 4)."""
    alpha_B111, sigma_B111 = signal_and_noise(schedule, timestep_idx_B)
    return alpha_B111 * latent_BCHW + sigma_B111 * noise_BCHW
