"""Pictures to latents and captions to conditioning, each distinct one encoded once.

Each is encoded alone, so its bits depend neither on the batch it was first met in nor on where a run was resumed.
What is kept lies on the CPU: a picture of 512 pixels takes 128 KiB, a caption of Stable Diffusion 1 231 KiB. Where the
config names a folder for it, it is kept on disk as well, for later runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from veneer.config.colour import rgb
from veneer.config.schema import DataConfig, RunConfig
from veneer.data.loader import Pick
from veneer.data.manifest import Sample
from veneer.data.transform import Geometry, geometry_of, is_flipped, load_centered, load_pixels
from veneer.family.fingerprint import fingerprint, settings_hash
from veneer.family.protocol import Conditioning, Family, LatentDistribution
from veneer.family.store import Store
from veneer.rng import torch_generator

__all__ = ["Encoder", "noise_like", "store_of"]


class Encoder:
    """What a base sees of pictures and captions.

    Args:
        family: the base; its autoencoder must not change, nor its text encoder if ``conditioning`` is asked.
        config: crop, flip and background.
        resolution: side of the square, in pixels.
        seed: of what is random about a showing.
        store: where they are kept for other runs, of the base as it is; None: nowhere.
    """

    def __init__(
        self, family: Family, config: DataConfig, resolution: int, seed: int, store: Store | None = None
    ) -> None:
        self._family, self._config, self._resolution, self._seed = family, config, resolution, seed
        self._store = store
        self._posteriors: dict[tuple[str, bool], LatentDistribution] = {}
        self._texts: dict[str, Conditioning] = {}

    def centered(self, sample: Sample) -> LatentDistribution:
        """The posterior of a picture with nothing random about it, each (1, C, H, W) on the CPU."""
        return self._kept(sample, flipped=False)

    def posterior(self, pick: Pick) -> LatentDistribution:
        """The posterior of one showing, each (1, C, H, W) on the CPU.

        A centered picture has two variants, as it is and mirrored, and both are kept. A random crop never comes twice.
        """
        if self._config.crop == "random":
            return self._encode(load_pixels(pick.sample, self._config, self._resolution, self._seed, pick.draw_index))
        return self._kept(pick.sample, is_flipped(pick.sample, self._config, self._seed, pick.draw_index))

    def latents(self, picked: Sequence[Pick]) -> Tensor:
        """A latent of each showing, drawn from its posterior, (B, C, H, W) on the CPU."""
        return torch.cat([self._latent(pick) for pick in picked])

    def texts(self, captions: Sequence[str]) -> Conditioning:
        """Return what the frozen text encoders make of captions, on the CPU; no gradient."""
        return Conditioning.cat([self._text(caption) for caption in captions])

    def geometry(self, pick: Pick) -> Geometry:
        """Return where what one showing shows lies in its picture."""
        return geometry_of(pick.sample, self._config, self._resolution, self._seed, pick.draw_index)

    def _latent(self, pick: Pick) -> Tensor:
        posterior = self.posterior(pick)
        return posterior.mean + posterior.std * noise_like(posterior.mean, pick, self._seed, "posterior")

    def _kept(self, sample: Sample, flipped: bool) -> LatentDistribution:
        if (sample.id, flipped) not in self._posteriors:
            what = ("posterior", sample.id, self._resolution, rgb(self._config.background), flipped)
            tensors = self._stored(what, lambda: vars(self._centered(sample, flipped)))
            self._posteriors[sample.id, flipped] = LatentDistribution(**tensors)
        return self._posteriors[sample.id, flipped]

    def _centered(self, sample: Sample, flipped: bool) -> LatentDistribution:
        pixels_CHW = load_centered(sample, self._config, self._resolution)
        return self._encode(pixels_CHW.flip(-1) if flipped else pixels_CHW)

    def _stored(self, what: tuple[object, ...], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return make() if self._store is None else self._store.kept(what, make)

    def _encode(self, pixels_CHW: Tensor) -> LatentDistribution:
        posterior = self._family.encode_image(pixels_CHW[None])
        return LatentDistribution(posterior.mean.cpu(), posterior.std.cpu())

    @torch.no_grad()
    def _text(self, caption: str) -> Conditioning:
        if caption not in self._texts:
            tensors = self._stored(("text", caption), lambda: self._encode_text(caption))
            self._texts[caption] = Conditioning(tensors)
        return self._texts[caption]

    def _encode_text(self, caption: str) -> dict[str, Tensor]:
        return dict(self._family.encode_text([caption]).to("cpu").tensors)


def store_of(config: RunConfig, family: Family) -> Store | None:
    """The store that a config names, for its base as it was loaded.

    In its keys is all that the base's numbers depend on, to the last bit: weights, settings, and what adds up in which
    order, which is another one with other threads, on another device and in another PyTorch.
    """
    if config.data.cache is None:
        return None
    one = next(parameter for network in family.networks.values() for parameter in network.parameters())
    held = "" if config.train.quantization == "none" else f" {config.train.quantization}"
    machine = f"{_kind_of(one.device)} {torch.__version__} {torch.get_num_threads()}"
    base = f"{fingerprint(config.base)} {settings_hash(family.settings)} {one.dtype}"
    return Store(config.data.cache, f"{base} {machine}{held}")


def _kind_of(device: torch.device) -> str:
    """Devices of one kind compute the same bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def noise_like(latent_1: Tensor, pick: Pick, seed: int, purpose: str) -> Tensor:
    """Standard normal noise of one showing, in the latent's shape: the same alone as in any batch."""
    generator = torch_generator(seed, pick.draw_index, pick.sample.id, purpose)
    return torch.randn(latent_1.shape, generator=generator)
