"""What a network predicts, and the way from one parameterisation to another (Salimans and Ho 2022, section 4).

With z = alpha x + sigma eps and alpha^2 + sigma^2 = 1, v = alpha eps - sigma x is z's derivative by its angle, so
(z, v) is (x, eps) turned by that angle, and turning back never divides. From eps, x needs alpha > 0; from x, eps needs
sigma > 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from veneer.family.protocol import NoiseSchedule
from veneer.objective.density import signal_and_noise

__all__ = ["eps_of", "target_of", "velocity", "x0_of"]

Equation = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def velocity(latent: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha eps - sigma x (Salimans and Ho 2022, section 4)."""
    return alpha * noise - sigma * latent


def _eps_target(latent: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return noise


def _x0_target(latent: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return latent


def _x0_from_v(v: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x = alpha z - sigma v (Salimans and Ho 2022, appendix D)."""
    return alpha * noisy - sigma * v


def _x0_from_eps(eps: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x = (z - sigma eps) / alpha (Ho et al. 2020, eq. 15)."""
    if not bool((alpha > 0).all()):
        raise ValueError("at zero SNR eps says nothing about x0; such a base must predict v or x0")
    return (noisy - sigma * eps) / alpha


def _x0_from_x0(x0: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return x0


def _eps_from_v(v: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps = sigma z + alpha v, the other half of the rotation."""
    return sigma * noisy + alpha * v


def _eps_from_eps(eps: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return eps


def _eps_from_x0(x0: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps = (z - alpha x) / sigma (Ho et al. 2020, eq. 4 solved for eps)."""
    if not bool((sigma > 0).all()):
        raise ValueError("without noise x0 says nothing about eps")
    return (noisy - alpha * x0) / sigma


_TARGET: Mapping[str, Equation] = MappingProxyType(
    {"epsilon": _eps_target, "v_prediction": velocity, "sample": _x0_target}
)
_X0: Mapping[str, Equation] = MappingProxyType(
    {"epsilon": _x0_from_eps, "v_prediction": _x0_from_v, "sample": _x0_from_x0}
)
_EPS: Mapping[str, Equation] = MappingProxyType(
    {"epsilon": _eps_from_eps, "v_prediction": _eps_from_v, "sample": _eps_from_x0}
)


def target_of(schedule: NoiseSchedule, latent_BCHW: Tensor, noise_BCHW: Tensor, timestep_idx_B: Tensor) -> Tensor:
    """What the network should answer (B, C, H, W), in the schedule's own parameterisation."""
    return _TARGET[schedule.prediction](latent_BCHW, noise_BCHW, *signal_and_noise(schedule, timestep_idx_B))


def x0_of(schedule: NoiseSchedule, prediction_BCHW: Tensor, noisy_BCHW: Tensor, timestep_idx_B: Tensor) -> Tensor:
    """The clean latent (B, C, H, W) that a prediction stands for; ValueError where it stands for none."""
    return _X0[schedule.prediction](prediction_BCHW, noisy_BCHW, *signal_and_noise(schedule, timestep_idx_B))


def eps_of(schedule: NoiseSchedule, prediction_BCHW: Tensor, noisy_BCHW: Tensor, timestep_idx_B: Tensor) -> Tensor:
    """The noise (B, C, H, W) that a prediction stands for; ValueError where it stands for none."""
    return _EPS[schedule.prediction](prediction_BCHW, noisy_BCHW, *signal_and_noise(schedule, timestep_idx_B))
