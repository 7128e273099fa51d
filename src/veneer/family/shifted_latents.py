"""What transformers over the autoencoders of Stable Diffusion 3 and FLUX.1 share: latents shifted and scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from veneer.data.transform import Geometry
from veneer.family.flow import FlowMatching
from veneer.family.offload import Loader
from veneer.family.packing import PATCH
from veneer.family.pipeline_family import PipelineFamily
from veneer.family.protocol import Conditioning, LatentDistribution

__all__ = ["ShiftedLatents"]


class ShiftedLatents(PipelineFamily):
    """A base of this kind, trained by flow matching, without what its texts become; it is told no sizes and crops."""

    denoiser = "transformer"

    def __init__(
        self, parts: Mapping[str, Any], load: Loader | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, load, options)
        self.noise = FlowMatching()
        self._shift = float(self._vae.config.shift_factor or 0)
        self.multiple = self._pixels_a_latent * PATCH
        self.resolution = self._pixels_a_latent * self.trained_side

    def condition(self, text: Conditioning, geometries: Sequence[Geometry]) -> Conditioning:
        """Return the texts: such a transformer is told nothing of sizes and crops."""
        return text

    def _to_latents(self, mean_BCHW: Tensor, std_BCHW: Tensor) -> LatentDistribution:
        return LatentDistribution((mean_BCHW - self._shift) * self._scale, std_BCHW * self._scale)

    def _from_latents(self, latents: Tensor) -> Tensor:
        return latents / self._scale + self._shift
