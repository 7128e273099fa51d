"""Weights of the loss by timestep.

Min-SNR caps the weight of x0's error at gamma (Hang et al. 2023, eq. 8). An error in eps or v is an error in x0 times a
factor of its own, hence a divisor for each parameterisation:

    x0: min(snr, gamma)      eps: min(snr, gamma) / snr      v: min(snr, gamma) / (snr + 1)

They are written in alpha-bar, where none of them is 0/0, not even at zero terminal SNR (alpha-bar = 0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from veneer.family.protocol import NoiseSchedule

__all__ = ["WEIGHTINGS", "constant", "min_snr", "snr"]


def _alpha_bar_B(schedule: NoiseSchedule, timestep_idx_B: Tensor) -> Tensor:
    return schedule.alphas_cumprod_T.to(timestep_idx_B.device)[timestep_idx_B]


def snr(schedule: NoiseSchedule, timestep_idx_B: Tensor) -> Tensor:
    """Signal-to-noise ratio alpha^2 / sigma^2 (B,) (Kingma et al. 2021, eq. 2); 0 at zero terminal SNR."""
    alpha_bar_B = _alpha_bar_B(schedule, timestep_idx_B)
    return alpha_bar_B / (1 - alpha_bar_B)


def _cap_for_x0(alpha_bar_B: Tensor, gamma: float) -> Tensor:
    """min(snr, gamma)."""
    return (alpha_bar_B / (1 - alpha_bar_B)).clamp(max=gamma)


def _cap_for_eps(alpha_bar_B: Tensor, gamma: float) -> Tensor:
    """min(snr, gamma) / snr = min(1, gamma / snr), which is 1 where snr = 0."""
    return (gamma * (1 - alpha_bar_B) / alpha_bar_B).clamp(max=1)


def _cap_for_v(alpha_bar_B: Tensor, gamma: float) -> Tensor:
    """min(snr, gamma) / (snr + 1) = min(alpha-bar, gamma (1 - alpha-bar)), which is 0 where snr = 0."""
    return torch.minimum(alpha_bar_B, gamma * (1 - alpha_bar_B))


_CAP: Mapping[str, Callable[[Tensor, float], Tensor]] = MappingProxyType(
    {"epsilon": _cap_for_eps, "v_prediction": _cap_for_v, "sample": _cap_for_x0}
)


def min_snr(schedule: NoiseSchedule, timestep_idx_B: Tensor, gamma: float) -> Tensor:
    """Min-SNR weights (B,) for what the schedule's network predicts (Hang et al. 2023, section 3.4)."""
    return _CAP[schedule.prediction](_alpha_bar_B(schedule, timestep_idx_B), gamma)


def constant(schedule: NoiseSchedule, timestep_idx_B: Tensor, gamma: float) -> Tensor:
    """Weight 1 everywhere (B,): the simple loss of the base's own training (Ho et al. 2020, eq. 14)."""
    return torch.ones(timestep_idx_B.shape, device=timestep_idx_B.device)


WEIGHTINGS: Mapping[str, Callable[[NoiseSchedule, Tensor, float], Tensor]] = MappingProxyType(
    {"none": constant, "min_snr": min_snr}
)
"""Weights by the name the config gives them."""
