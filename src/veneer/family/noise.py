"""Coefficients of a noise process, applied to latents of any rank."""

from __future__ import annotations

from torch import Tensor

__all__ = ["mix", "per_row"]


def per_row(value_B: Tensor, latents: Tensor) -> Tensor:
    """Give one value a row the rank of ``latents``, (B, 1, ..., 1)."""
    return value_B.view(-1, *[1] * (latents.ndim - 1))


def mix(coefficients: tuple[Tensor, Tensor], clean: Tensor, noise: Tensor) -> Tensor:
    """Return alpha x + sigma eps (Ho et al. 2020, eq. 4) for alpha and sigma (B,) and x and eps (B, ...)."""
    alpha_B, sigma_B = coefficients
    return per_row(alpha_B, clean) * clean + per_row(sigma_B, noise) * noise
