"""From what a network answers to the clean latent and the noise (Salimans and Ho 2022, section 4).

With z = alpha x + sigma eps and alpha^2 + sigma^2 = 1, v = alpha eps - sigma x is z's derivative by its angle, so
(z, v) is (x, eps) turned by that angle, and turning back never divides. Nor does a flow's velocity eps - x, where alpha
+ sigma = 1. From eps, x needs alpha > 0; from x, eps needs sigma > 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from veneer.family.noise import per_row
from veneer.family.protocol import NoiseProcess

__all__ = ["eps_of", "x0_of"]

Equation = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _x0_from_v(v: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return x = alpha z - sigma v (Salimans and Ho 2022, appendix D)."""
    return alpha * noisy - sigma * v


def _x0_from_eps(eps: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return x = (z - sigma eps) / alpha (Ho et al. 2020, eq. 15)."""
    if not bool((alpha > 0).all()):
        raise ValueError("at zero SNR eps says nothing about x0; such a base must predict v or x0")
    return (noisy - sigma * eps) / alpha


def _x0_from_x0(x0: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return x0


def _x0_from_flow(velocity: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return x = z - sigma (eps - x)."""
    return noisy - sigma * velocity


def _eps_from_v(v: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return eps = sigma z + alpha v, the other half of the rotation."""
    return sigma * noisy + alpha * v


def _eps_from_eps(eps: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return eps


def _eps_from_x0(x0: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return eps = (z - alpha x) / sigma (Ho et al. 2020, eq. 4 solved for eps)."""
    if not bool((sigma > 0).all()):
        raise ValueError("without noise x0 says nothing about eps")
    return (noisy - alpha * x0) / sigma


def _eps_from_flow(velocity: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return eps = z + alpha (eps - x)."""
    return noisy + alpha * velocity


_X0: Mapping[str, Equation] = MappingProxyType(
    {"epsilon": _x0_from_eps, "v_prediction": _x0_from_v, "sample": _x0_from_x0, "flow": _x0_from_flow}
)
_EPS: Mapping[str, Equation] = MappingProxyType(
    {"epsilon": _eps_from_eps, "v_prediction": _eps_from_v, "sample": _eps_from_x0, "flow": _eps_from_flow}
)


def x0_of(process: NoiseProcess, prediction: Tensor, noisy: Tensor, t_B: Tensor) -> Tensor:
    """Return the clean latents (B, ...) that a prediction stands for.

    Raises:
        ValueError: it stands for none.
    """
    alpha_B, sigma_B = process.coefficients(t_B)
    return _X0[process.prediction](prediction, noisy, per_row(alpha_B, noisy), per_row(sigma_B, noisy))


def eps_of(process: NoiseProcess, prediction: Tensor, noisy: Tensor, t_B: Tensor) -> Tensor:
    """Return the noise (B, ...) that a prediction stands for.

    Raises:
        ValueError: it stands for none.
    """
    alpha_B, sigma_B = process.coefficients(t_B)
    return _EPS[process.prediction](prediction, noisy, per_row(alpha_B, noisy), per_row(sigma_B, noisy))
