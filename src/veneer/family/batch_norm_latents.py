"""Latents of FLUX.2's autoencoder, which several families share: squares of 2 x 2 as channels, standardised.

Mean and deviation of each channel are those of a batch norm, which lie among the autoencoder's weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from veneer.family.flow import FlowMatching
from veneer.family.offload import Loader
from veneer.family.packing import PATCH
from veneer.family.pipeline_family import PipelineFamily
from veneer.family.protocol import LatentDistribution

__all__ = ["BatchNormLatents"]

_STATISTICS = ("running_mean", "running_var")


class BatchNormLatents(PipelineFamily):
    """A base over FLUX.2's autoencoder: its latents are (B, 128, H/16, W/16) for pixels (B, 3, H, W).

    Source: diffusers ``pipelines/flux2/pipeline_flux2.py``, ``_encode_vae_image``.
    """

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        self.noise = FlowMatching()
        self.multiple = self._pixels_a_latent * PATCH
        self.resolution = self._pixels_a_latent * self.trained_side

    @property
    def settings(self) -> dict[str, str]:
        """Also what latents are standardised with: weights without which a cache's latents mean nothing."""
        own = {f"vae.bn.{name}": _digest(getattr(self._vae.bn, name)) for name in _STATISTICS}
        return super().settings | own | {"vae.bn.eps": str(self._epsilon)}

    @property
    def _epsilon(self) -> float:
        """What is added to a variance before its root is taken."""
        return float(self._vae.config.batch_norm_eps)

    def _scaling_factor(self) -> float:
        return 1.0  # this autoencoder has none

    def _latent_channels(self) -> int:
        return PATCH**2 * int(self._vae.config.latent_channels)

    def _to_latents(self, mean_BCHW: Tensor, std_BCHW: Tensor) -> LatentDistribution:
        centre, scale = self._statistics(mean_BCHW.device)
        return LatentDistribution((self._patchify(mean_BCHW) - centre) / scale, self._patchify(std_BCHW) / scale)

    def _from_latents(self, latents: Tensor) -> Tensor:
        centre, scale = self._statistics(latents.device)
        return self._unpatchify(latents * scale + centre)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each channel, each (1, C, 1, 1)."""
        mean_C, variance_C = (getattr(self._vae.bn, name).to(device) for name in _STATISTICS)
        return mean_C.float().view(1, -1, 1, 1), torch.sqrt(variance_C.float().view(1, -1, 1, 1) + self._epsilon)

    def _patchify(self, latents_BCHW: Tensor) -> Tensor:
        """Return squares as channels (B, 4C, H/2, W/2), in the order (c, y, x)."""
        return F.pixel_unshuffle(latents_BCHW, PATCH)

    def _unpatchify(self, grid_BCHW: Tensor) -> Tensor:
        """Return the autoencoder's own latents (B, C/4, 2H, 2W)."""
        return F.pixel_shuffle(grid_BCHW, PATCH)

    @classmethod
    def _autoencoder_class(cls) -> Any:
        from diffusers import AutoencoderKLFlux2

        return AutoencoderKLFlux2


def _digest(values: Tensor) -> str:
    """Return a short hash of numbers; of a base without weights a word in its place."""
    if values.is_meta or isinstance(values, FakeTensor):
        return "no weights"
    return f"sha256 {hashlib.sha256(values.detach().float().cpu().numpy().tobytes()).hexdigest()[:16]}"
