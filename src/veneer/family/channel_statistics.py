"""Latents whose channels each have mean 0 and deviation 1: those of the autoencoders of Wan, Qwen-Image and LTX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from veneer.errors import UserError
from veneer.family.protocol import LatentDistribution

__all__ = ["ChannelStatistics"]


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and deviation of each channel of an autoencoder's own latents.

    Attributes:
        mean_C: one number a channel.
        std_C: likewise.
    """

    mean_C: Tensor
    std_C: Tensor

    @classmethod
    def of_config(cls, config: Any) -> ChannelStatistics:
        """Return those that an autoencoder's configuration has.

        Raises:
            UserError: there is not one mean and one deviation for each channel.
        """
        found = (len(config.latents_mean), len(config.latents_std))
        if set(found) != {config.z_dim} or min(config.latents_std) <= 0:
            what = f"the autoencoder has {found[0]} means and {found[1]} deviations for {config.z_dim} channels"
            remedy = "latents_mean and latents_std must be one number a channel, the deviations above 0"
            raise UserError(what, code="family.invalid_setting", remedy=remedy)
        return cls(torch.tensor(config.latents_mean), torch.tensor(config.latents_std))

    def standardize(self, mean: Tensor, std: Tensor) -> LatentDistribution:
        """Return the posterior over standardised latents of one over the autoencoder's own, (B, C, ...) both."""
        own_mean, own_std = self._like(mean)
        return LatentDistribution((mean - own_mean) / own_std, std / own_std)

    def restore(self, latents: Tensor) -> Tensor:
        """Return the autoencoder's own latents (B, C, ...) of standardised ones."""
        own_mean, own_std = self._like(latents)
        return latents / (1.0 / own_std) + own_mean  # as the pipelines round it

    def _like(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        mean, std = (each.to(latents.device, latents.dtype).view(shape) for each in (self.mean_C, self.std_C))
        return mean, std
