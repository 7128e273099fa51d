"""Pictures to latents and captions to conditioning, each distinct one encoded once.

Each is encoded alone, so its bits depend neither on the batch it was first met in nor on where a run was resumed.
What is kept lies on the CPU: a picture of 512 pixels takes 128 KiB, a caption of Stable Diffusion 1 231 KiB.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from veneer.config.schema import DataConfig
from veneer.data.loader import Pick
from veneer.data.manifest import Sample
from veneer.data.transform import is_flipped, load_centered, load_pixels
from veneer.family.base import Family, LatentDistribution
from veneer.keyed import torch_generator

__all__ = ["Encoder", "noise_like"]


class Encoder:
    """What a base sees of pictures and captions.

    Args:
        family: the base; its autoencoder must not change, nor its text encoder if ``conditioning`` is asked.
        config: crop, flip and background.
        resolution: side of the square, in pixels.
        seed: of what is random about a showing.
    """

    def __init__(self, family: Family, config: DataConfig, resolution: int, seed: int) -> None:
        self._family, self._config, self._resolution, self._seed = family, config, resolution, seed
        self._posteriors: dict[tuple[str, bool], LatentDistribution] = {}
        self._conditioning: dict[str, Tensor] = {}

    def centered(self, sample: Sample) -> LatentDistribution:
        """The posterior of a picture with nothing random about it, each (1, C, H, W) on the CPU."""
        return self._kept(sample, flipped=False)

    def posterior(self, pick: Pick) -> LatentDistribution:
        """The posterior of one showing, each (1, C, H, W) on the CPU.

        A centered picture has two variants, as it is and mirrored, and both are kept. A random crop never comes twice.
        """
        if self._config.crop == "random":
            return self._encode(load_pixels(pick.sample, self._config, self._resolution, self._seed, pick.showing))
        return self._kept(pick.sample, is_flipped(pick.sample, self._config, self._seed, pick.showing))

    def latents(self, picked: Sequence[Pick]) -> Tensor:
        """A latent of each showing, drawn from its posterior, (B, C, H, W) on the CPU."""
        return torch.cat([self._latent(pick) for pick in picked])

    def conditioning(self, captions: Sequence[str]) -> Tensor:
        """What the frozen text encoder makes of captions, (B, L, D) on the CPU; no gradient."""
        return torch.cat([self._embedding(caption) for caption in captions])

    def _latent(self, pick: Pick) -> Tensor:
        posterior = self.posterior(pick)
        return posterior.mean + posterior.std * noise_like(posterior.mean, pick, self._seed, "posterior")

    def _kept(self, sample: Sample, flipped: bool) -> LatentDistribution:
        if (sample.id, flipped) not in self._posteriors:
            pixels_CHW = load_centered(sample, self._config, self._resolution)
            self._posteriors[sample.id, flipped] = self._encode(pixels_CHW.flip(-1) if flipped else pixels_CHW)
        return self._posteriors[sample.id, flipped]

    def _encode(self, pixels_CHW: Tensor) -> LatentDistribution:
        posterior = self._family.encode_image(pixels_CHW[None])
        return LatentDistribution(posterior.mean.cpu(), posterior.std.cpu())

    @torch.no_grad()
    def _embedding(self, caption: str) -> Tensor:
        if caption not in self._conditioning:
            self._conditioning[caption] = self._family.encode_text([caption]).cpu()
        return self._conditioning[caption]


def noise_like(latent_1CHW: Tensor, pick: Pick, seed: int, purpose: str) -> Tensor:
    """Standard normal noise of one showing, in the latent's shape: the same alone as in any batch."""
    generator = torch_generator(seed, pick.showing, pick.sample.id, purpose)
    return torch.randn(latent_1CHW.shape, generator=generator)
