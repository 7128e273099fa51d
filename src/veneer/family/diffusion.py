"""Discrete diffusion (Ho et al. 2020): T steps of noise, each with its alpha-bar.

Here alone, time becomes an index: t in [0, 1] is step min(floor(t T), T - 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from veneer.family.noise import mix, per_row

__all__ = ["DiscreteDiffusion", "velocity"]


@dataclass(frozen=True, eq=False)
class DiscreteDiffusion:
    """The forward process of a base of DDPM's kind; a ``NoiseProcess``.

    Attributes:
        alphas_cumprod_T: alpha-bar of each step, float32 (T,); the last may be 0 (zero terminal SNR, Lin et al. 2024).
        prediction: what the network answers.
    """

    alphas_cumprod_T: Tensor
    prediction: Literal["epsilon", "v_prediction", "sample"]
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)
    """The table on other devices: a copy for each step would wait for the GPU."""

    def index(self, t_B: Tensor) -> Tensor:
        """Return the steps (B,), long, that times in [0, 1] lie in."""
        total = len(self.alphas_cumprod_T)
        # t may be 1, which is one past the last step
        return (t_B * total).long().clamp(max=total - 1)

    def signal_share(self, t_B: Tensor) -> Tensor:
        """Return alpha-bar (B,), since alpha_t^2 + sigma_t^2 = 1."""
        return self._table_on(t_B.device)[self.index(t_B)]

    def _table_on(self, device: torch.device) -> Tensor:
        table = self._copies.get(device)
        if table is None:
            table = self.alphas_cumprod_T.to(device)
            if type(table) is Tensor:  # not one without data, of a plan
                self._copies[device] = table
        return table

    def coefficients(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t = sqrt(alpha-bar) and sigma_t = sqrt(1 - alpha-bar), each (B,)."""
        alpha_bar_B = self.signal_share(t_B)
        return alpha_bar_B.sqrt(), (1 - alpha_bar_B).sqrt()

    def snr(self, t_B: Tensor) -> Tensor:
        """Return alpha-bar / (1 - alpha-bar) (B,) (Kingma et al. 2021, eq. 2); 0 at zero terminal SNR."""
        alpha_bar_B = self.signal_share(t_B)
        return alpha_bar_B / (1 - alpha_bar_B)

    def add_noise(self, clean: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """Return z_t = alpha_t x + sigma_t eps (Ho et al. 2020, eq. 4)."""
        return mix(self.coefficients(t_B), clean, noise)

    def target(self, clean: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """Return what the network should answer, in the base's own parameterisation."""
        alpha_B, sigma_B = self.coefficients(t_B)
        return _TARGET[self.prediction](clean, noise, per_row(alpha_B, clean), per_row(sigma_B, clean))


def velocity(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return v = alpha eps - sigma x (Salimans and Ho 2022, section 4)."""
    return alpha * noise - sigma * clean


def _noise(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return noise


def _clean(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return clean


_TARGET: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {"epsilon": _noise, "v_prediction": velocity, "sample": _clean}
)
