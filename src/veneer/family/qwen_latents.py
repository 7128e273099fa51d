"""The latents of Qwen-Image's autoencoder, which Krea 2 and Anima have too.

It is Wan's, for video: pictures are clips of one frame, (B, 3, 1, H, W). Outside a family its latents are a grid
(B, C, h, w), each channel less its mean and over its deviation, both of which are in the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from veneer.config.objective_config import Density
from veneer.data.transform import Geometry
from veneer.family.channel_statistics import ChannelStatistics
from veneer.family.flow import FlowMatching
from veneer.family.offload import Loader
from veneer.family.packing import PATCH
from veneer.family.pipeline_family import PipelineFamily
from veneer.family.protocol import Conditioning, LatentDistribution

__all__ = ["QwenLatents"]


class QwenLatents(PipelineFamily):
    """A base with such an autoencoder, whose transformer learned a flow over squares of 2 x 2 of its latents.

    Each of these bases guides, where it does, by two passes.
    """

    denoiser = "transformer"
    default_density: Density = "logit_normal"
    guided_batch = False
    takes_packed: bool = True
    """Whether the transformer is given the squares as tokens; else it makes them itself."""

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        self.noise = FlowMatching()
        self._statistics = ChannelStatistics.of_config(self._vae.config)
        self.multiple = self._pixels_a_latent * PATCH
        self.resolution = self._pixels_a_latent * self.trained_side

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Return the texts: these transformers are told nothing of sizes and crops."""
        return text

    @property
    def _pixels_a_latent(self) -> int:
        return int(2 ** len(self._vae.config.temperal_downsample))  # diffusers' spelling

    @torch.no_grad()
    def encode_image(self, pixels_BCHW: Tensor) -> LatentDistribution:
        """Turn pixels in [-1, 1] into the posterior of latents whose channels each have mean 0 and deviation 1."""
        with self._autoencoder() as vae:
            posterior = vae.encode(pixels_BCHW[:, :, None].to(vae.device, vae.dtype)).latent_dist
        return self._statistics.standardize(posterior.mean[:, :, 0].float(), posterior.std[:, :, 0].float())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents into pixels, clamped to [-1, 1]."""
        with self._autoencoder() as vae:
            own = self._statistics.restore(latents).to(vae.device, vae.dtype)
            pixels_BCHW = vae.decode(own[:, :, None]).sample[:, :, 0]
        return cast(Tensor, pixels_BCHW).float().clamp(-1, 1)

    def _scaling_factor(self) -> float:
        """Return 1: each channel has a scale of its own."""
        return 1.0

    def _latent_channels(self) -> int:
        return int(self._vae.config.z_dim) * (PATCH**2 if self.takes_packed else 1)
