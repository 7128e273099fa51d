"""What families of clips share: an axis of time, of which a picture has one frame, and channels that are normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from veneer.errors import UserError
from veneer.family.channel_statistics import ChannelStatistics
from veneer.family.pipeline_family import PipelineFamily
from veneer.family.protocol import LatentDistribution

__all__ = ["VideoFamily"]

_PICTURE = 4  # axes of a batch of pictures; of clips there is one more


class VideoFamily(PipelineFamily):
    """A base whose latents are (B, C, T, H, W), of a picture with T = 1."""

    frame_stride: int
    frame_rate: float

    def _statistics(self) -> ChannelStatistics:
        """Return the mean and the deviation of each channel of the autoencoder's latents."""
        raise NotImplementedError

    def _tokens(self, height: int, width: int, frames: int) -> int:
        """Return the tokens of a clip: those of a picture for each frame of latents."""
        return super()._tokens(height, width, 1) * ((frames - 1) // self.frame_stride + 1)

    def _check_channels(self) -> None:
        """Refuse a denoiser that takes a first frame beside the noisy latents."""
        taken, made = self._denoiser.config.in_channels, self._latent_channels()
        if taken > made:
            what = f"the {self.denoiser} takes {taken} channels and the autoencoder makes {made}: it animates a picture"
            remedy = "train the text-to-video base of its size"
            raise UserError(what, code="base.image_to_video", remedy=remedy)
        super()._check_channels()

    def _scaling_factor(self) -> float:
        """Return 1: each channel has a scale of its own."""
        return 1.0

    @torch.no_grad()
    def encode_image(self, pixels_BCHW: Tensor) -> LatentDistribution:
        """Turn pixels of pictures (B, 3, H, W) or clips (B, 3, T, H, W) into the posterior over normalised latents."""
        return super().encode_image(pixels_BCHW.unsqueeze(2) if pixels_BCHW.ndim == _PICTURE else pixels_BCHW)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents into pixels of clips (B, 3, T, H, W), of pictures (B, 3, H, W)."""
        pixels = super().decode(latents)
        return pixels.squeeze(2) if pixels.shape[2] == 1 else pixels

    def _to_latents(self, mean_BCTHW: Tensor, std_BCTHW: Tensor) -> LatentDistribution:
        return self._statistics().standardize(mean_BCTHW, std_BCTHW)

    def _from_latents(self, latents: Tensor) -> Tensor:
        return self._statistics().restore(latents)

    def pipeline_frames(self, count: int) -> dict[str, Any]:
        """Return the pipeline's arguments for clips of so many frames."""
        return {"num_frames": count, "output_type": "pil"}

    def frames_of(self, painted: Any) -> Sequence[Sequence[Image.Image]]:
        """Return the frames of each clip."""
        clips: list[list[Image.Image]] = painted.frames
        return clips
