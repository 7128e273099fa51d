"""Weights of the loss by time.

Min-SNR caps the weight of x0's error at gamma (Hang et al. 2023, eq. 8). An error in eps, in v or in a flow's velocity
is an error in x0 times a factor of its own, hence a divisor for each parameterisation:

    x0: min(snr, gamma)    eps: min(snr, gamma) / snr    v: min(snr, gamma) / (snr + 1)    flow: min(snr, gamma) sigma^2

They are written in the signal's share of the variance p = snr / (snr + 1), or in alpha and sigma, where none of them is
0/0, neither at zero terminal SNR nor without noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from veneer.family.protocol import NoiseProcess

__all__ = ["WEIGHTINGS", "constant", "min_snr"]


def _cap_for_x0(process: NoiseProcess, t_B: Tensor, gamma: float) -> Tensor:
    """Return min(snr, gamma)."""
    return process.snr(t_B).clamp(max=gamma)


def _cap_for_eps(process: NoiseProcess, t_B: Tensor, gamma: float) -> Tensor:
    """Return min(snr, gamma) / snr = min(1, gamma / snr), which is 1 where snr = 0."""
    share_B = process.signal_share(t_B)
    return (gamma * (1 - share_B) / share_B).clamp(max=1)


def _cap_for_v(process: NoiseProcess, t_B: Tensor, gamma: float) -> Tensor:
    """Return min(snr, gamma) / (snr + 1) = min(p, gamma (1 - p)), which is 0 where snr = 0."""
    share_B = process.signal_share(t_B)
    return torch.minimum(share_B, gamma * (1 - share_B))


def _cap_for_flow(process: NoiseProcess, t_B: Tensor, gamma: float) -> Tensor:
    """Return min(snr, gamma) sigma^2 = min(alpha^2, gamma sigma^2): x0 is x_sigma - sigma v."""
    alpha_B, sigma_B = process.coefficients(t_B)
    return torch.minimum(alpha_B.square(), gamma * sigma_B.square())


_CAP: Mapping[str, Callable[[NoiseProcess, Tensor, float], Tensor]] = MappingProxyType(
    {"epsilon": _cap_for_eps, "v_prediction": _cap_for_v, "sample": _cap_for_x0, "flow": _cap_for_flow}
)


def min_snr(process: NoiseProcess, t_B: Tensor, gamma: float) -> Tensor:
    """Return Min-SNR weights (B,) for what the process's network predicts (Hang et al. 2023, section 3.4)."""
    return _CAP[process.prediction](process, t_B, gamma)


def constant(process: NoiseProcess, t_B: Tensor, gamma: float) -> Tensor:
    """Return weight 1 everywhere (B,): the simple loss of the base's own training (Ho et al. 2020, eq. 14)."""
    return torch.ones(t_B.shape, device=t_B.device)


WEIGHTINGS: Mapping[str, Callable[[NoiseProcess, Tensor, float], Tensor]] = MappingProxyType(
    {"none": constant, "min_snr": min_snr}
)
"""Weights by the name that the config gives them."""
