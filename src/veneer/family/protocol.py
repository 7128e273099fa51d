"""What a family of diffusion models must offer; everything that differs between models lives behind this door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Family", "LatentDistribution", "NoiseSchedule", "device_of"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The forward process the base was trained with (Ho et al. 2020, section 2).

    Attributes:
        alphas_cumprod_T: alpha-bar of each timestep, float32 (T,); the last may be 0 (zero terminal SNR).
        prediction: what the network predicts.
    """

    alphas_cumprod_T: Tensor
    prediction: Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class LatentDistribution:
    """The autoencoder's posterior in the latents the denoiser sees, i.e. scaled: mean and deviation, (B, C, H, W)."""

    mean: Tensor
    std: Tensor


class Family(Protocol):
    """A base model: its networks and their conventions."""

    name: str
    networks: Mapping[str, nn.Module]
    """The networks an adapter may change, by their prefix in adapter files: ``unet``, ``text_encoder``."""
    noise: NoiseSchedule
    resolution: int
    """Side of the square the base was trained on, in pixels."""
    multiple: int
    """Sides of pictures must be multiples of this many pixels."""
    text_length: int
    """Tokens of a caption that the text encoder reads, not counting those that mark its beginning and end."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What its numbers depend on and its weights do not tell, each with a short text: scheduler, scaling, ..."""

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Captions to conditioning (B, L, D); gradients flow if the text encoder has an adapter in training."""

    def overlong(self, captions: Sequence[str]) -> Mapping[str, int]:
        """The captions of which the text encoder sees only the beginning, and how many tokens they have."""

    def encode_image(self, pixels_BCHW: Tensor) -> LatentDistribution:
        """Pixels in [-1, 1], (B, 3, H, W), to the posterior over latents; no gradient."""

    def predict(self, noisy_BCHW: Tensor, timestep_idx_B: Tensor, conditioning_BLD: Tensor) -> Tensor:
        """The denoiser's output (B, C, H, W) in the family's own parameterisation."""

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Latents to pixels in [-1, 1]; no gradient."""

    def pipeline(self) -> object:
        """A diffusers pipeline over these very networks: what is injected or merged here is seen there."""

    def offload(self, parts: Sequence[str]) -> None:
        """Take exactly these parts out of memory, as far as that can be done, and bring all others back.

        ``autoencoder`` and ``text_encoder`` can be named. A call of an offloaded part restores it, to the same bits.
        """

    def to(self, device: torch.device, dtype: torch.dtype) -> Family:
        """Move and cast the frozen networks in place."""


def device_of(family: Family) -> torch.device:
    """Where a base's networks are; they are all in one place."""
    return next(parameter.device for network in family.networks.values() for parameter in network.parameters())
