"""What a family of diffusion models offers; everything that differs between models lives behind this door.

Outside a family, time is a number t from 0 (clean) to 1 (noise), a text is a ``Conditioning`` that nobody looks into,
and latents have any rank: the first axis is the batch, the rest is the family's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from veneer.family.conditioning import NO_REFERENCES, Conditioning
from veneer.family.noise_process import NoiseProcess, Prediction
from veneer.family.protocol_adapters import FamilyAdapters
from veneer.family.protocol_latents import FamilyLatents, LatentDistribution
from veneer.family.protocol_painting import FamilyPainting
from veneer.family.protocol_text import FamilyText
from veneer.family.protocol_timesteps import FamilyTimesteps

__all__ = [
    "NO_REFERENCES",
    "Conditioning",
    "Family",
    "LatentDistribution",
    "NoiseProcess",
    "Prediction",
    "device_of",
]


class Family(FamilyText, FamilyLatents, FamilyTimesteps, FamilyPainting, FamilyAdapters, Protocol):
    """A base model: its networks and their conventions."""

    name: str
    denoiser: str
    """The denoiser's name among ``networks``; all others are text encoders."""
    on_demand: Mapping[str, nn.Module]
    """Text encoders and denoiser by name, if they are so large that a run has one or the other in memory: each is read
    when it is first called. Empty where a run has both."""

    @property
    def distilled(self) -> str | None:
        """What plain training does to a base that was distilled to paint in few steps, and what to do; None: nothing
        of its files says that it was.
        """

    @property
    def settings(self) -> Mapping[str, str]:
        """What its numbers depend on and its weights do not tell, each with a short text: scheduler, scaling, ..."""

    def use_expert(self, expert: str | None) -> None:
        """Train one of two denoisers from now on, each of which has a range of times; None: there is one.

        Raises:
            UserError: there is one, or there are two and none is named.
        """

    def predict(self, noisy: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the denoiser's output for noisy latents (B, ...), in their shape, as ``noise.prediction`` says."""

    def offload(self, parts: Sequence[str]) -> None:
        """Take exactly these parts out of memory, as far as that can be done, and bring all others back.

        ``autoencoder``, the text encoders and the denoiser can be named. A call of an offloaded part restores it, to
        the same bits.
        """

    def to(self, device: torch.device, dtype: torch.dtype) -> Family:
        """Move and cast the frozen networks in place."""


def device_of(family: Family) -> torch.device:
    """Return where a base's networks are; they are all in one place."""
    return next(parameter.device for network in family.networks.values() for parameter in network.parameters())
