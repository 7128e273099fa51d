"""How families of diffusers pipelines turn pictures into latents and back, by the pipeline's autoencoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from veneer.errors import UserError
from veneer.family.pipeline_parts import PipelineParts
from veneer.family.protocol import Conditioning, LatentDistribution

__all__ = ["PipelineLatents", "check_positive"]


class PipelineLatents(PipelineParts):
    """The latents of a family: those of an autoencoder with one scale, unless a subclass has others."""

    trained_side: int = 128
    """Side of the squares that bases were trained on, in latents, where their configurations do not say it."""
    autoencoder_overflows: bool = False
    """Whether the autoencoder's activations leave the range of float16: held in it, it computes in float32."""
    _scale: float

    @property
    def longest_side(self) -> int | None:
        """Any."""
        return None

    def _scaling_factor(self) -> float:
        """Return what the autoencoder's latents are multiplied by, where one number is all that is done to them."""
        return check_positive(self._vae.config.scaling_factor, "the autoencoder's scaling_factor")

    def _check_channels(self) -> None:
        """Refuse a denoiser that takes other latents than the autoencoder makes."""
        taken, made = self._denoiser.config.in_channels, self._latent_channels()
        if taken != made:
            raise UserError(
                f"the {self.denoiser} takes {taken} channels, the autoencoder makes {made}",
                code="family.not_text_to_image",
                remedy="use a text-to-image base, not an inpainting or depth model",
            )

    def _latent_channels(self) -> int:
        """Return the channels of the latents that the denoiser gets."""
        return int(self._vae.config.latent_channels)

    @property
    def _pixels_a_latent(self) -> int:
        """Pixels that one latent is wide."""
        return int(2 ** (len(self._vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode_image(self, pixels_BCHW: Tensor) -> LatentDistribution:
        """Turn pixels in [-1, 1] into the scaled posterior (Rombach et al. 2022, appendix G)."""
        with self._autoencoder() as vae:
            posterior = vae.encode(pixels_BCHW.to(vae.device, vae.dtype)).latent_dist
        return self._to_latents(posterior.mean.float(), posterior.std.float())

    def encode_references(self, references: Sequence[Tensor]) -> Conditioning:
        """Turn references, (3, H, W), into latents as those of what is painted: the means of their posteriors."""
        return Conditioning.of_references([self.encode_image(pixels[None]).mean for pixels in references])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents into pixels, clamped to [-1, 1]."""
        with self._autoencoder() as vae:
            pixels_BCHW = self._decoded(vae, self._from_latents(latents).to(vae.device, vae.dtype))
        return pixels_BCHW.float().clamp(-1, 1)

    def _decoded(self, vae: Any, latents: Tensor) -> Tensor:
        """Return what the autoencoder makes of its own latents."""
        return cast(Tensor, vae.decode(latents).sample)

    def _to_latents(self, mean_BCHW: Tensor, std_BCHW: Tensor) -> LatentDistribution:
        """Return what the denoiser is given of the autoencoder's own latents."""
        return LatentDistribution(mean_BCHW * self._scale, std_BCHW * self._scale)

    def _from_latents(self, latents: Tensor) -> Tensor:
        """Return the autoencoder's own latents (B, C, H, W)."""
        return latents / self._scale

    @contextmanager
    def _autoencoder(self) -> Iterator[Any]:
        """Give the autoencoder, in memory and in the dtype that it computes in."""
        self._offloader.restore("autoencoder")
        dtype = self._vae.dtype
        if dtype != torch.float16 or not self.autoencoder_overflows:
            yield self._vae
            return
        with torch.autocast(self._vae.device.type, enabled=False):
            yield self._vae.to(torch.float32)
        self._vae.to(dtype)


def check_positive(value: object, what: str) -> float:
    """Return a setting that must be a number above 0.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        remedy = "it must be a number above 0"
        raise UserError(f"{what} is {value!r:.40}", code="family.invalid_setting", remedy=remedy)
    return value
