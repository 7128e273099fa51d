"""Encode pictures into latents and captions into conditioning, each distinct one once.

Each is encoded alone, so its bits depend neither on the batch that it was first met in nor on where a run was resumed.
A picture of 512 pixels takes 128 KiB, a caption of Stable Diffusion 1 231 KiB: in the CPU's memory, or where the config
names a folder for it on the disk, for later runs as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from veneer.config.colour import rgb
from veneer.config.data_config import DataConfig
from veneer.config.schema import RunConfig
from veneer.data.augment import draws_differ
from veneer.data.buckets import Size
from veneer.data.clip import clip_release
from veneer.data.clip_frames import FrameSpan
from veneer.data.decode import DECODING
from veneer.data.loader import SampleDraw
from veneer.data.manifest import Sample
from veneer.data.prefetch import PixelLoader, PixelRequest
from veneer.data.transform import (
    Geometry,
    geometry_of,
    is_flipped,
    load_centered_mask,
    load_mask,
)
from veneer.errors import UserError
from veneer.family.fingerprint import fingerprint, settings_hash
from veneer.family.protocol import NO_REFERENCES, Conditioning, Family, LatentDistribution
from veneer.family.store import MemoryStore, Store, TensorStore
from veneer.family.store_shard import Tensors
from veneer.files import public_name
from veneer.rng import torch_generator

__all__ = ["Encoder", "noise_like", "store_of"]

Grid: TypeAlias = tuple[int, int]
"""Rows and columns of latents."""
_LIBRARIES = ("diffusers", "transformers", "pillow")
"""Packages beside PyTorch that make latents and embeddings, of which another release may give other bits."""


class Encoder:
    """Encodes pictures and captions with a base's autoencoder and text encoders, and caches the results.

    Args:
        family: the base; its autoencoder must not change, nor may its text encoders if texts are encoded.
        config: background, and how pictures are augmented.
        seed: of what is random about a draw.
        store: keeps the results, which are of this base as it is; None: memory does.

    Attributes:
        store: as above.
        pixels: loads the pictures.

    Raises:
        UserError: the base reads texts in another number of windows than the config says.
    """

    def __init__(self, family: Family, config: DataConfig, seed: int, store: TensorStore | None = None) -> None:
        _check_windows(family, config)
        self._family, self._config, self._seed = family, config, seed
        self.store: TensorStore = MemoryStore() if store is None else store
        self.pixels = PixelLoader(config, seed)

    def expect(self, draws: Iterable[SampleDraw]) -> None:
        """Begin to load the pictures that are not kept encoded and that these draws will need."""
        self.pixels.expect([request for draw in draws for request in self._requests(draw)])

    def _requests(self, draw: SampleDraw) -> Iterator[PixelRequest]:
        """Yield what is to be loaded for a draw."""
        if not self.keeps(draw) or not self.store.holds(self.posterior_key(draw)):
            yield self._request("picture", draw)
        if draw.sample.references and (self._draws_differ or not self.store.holds(self.references_key(draw))):
            yield self._request("references", draw)

    def _request(self, part: Literal["picture", "references"], draw: SampleDraw) -> PixelRequest:
        # the two sides of a centered picture are one request
        is_random = self._draws_differ or part == "references"
        span = draw.span if part == "picture" else None
        return PixelRequest(part, draw.sample, draw.size, draw.draw_index if is_random else None, span)

    @property
    def _draws_differ(self) -> bool:
        """Whether no two draws of a picture see the same of it, so that nothing of it is kept."""
        return draws_differ(self._config)

    def keeps(self, draw: SampleDraw) -> bool:
        """Check whether what a draw sees of its picture or clip is kept encoded, for other draws see the same."""
        return not self._draws_differ and (draw.span is None or not draw.span.varies)

    def centered(self, sample: Sample, size: Size, span: FrameSpan | None = None) -> LatentDistribution:
        """Return the posterior of a picture with nothing random about it, each tensor (1, ...) on the CPU.

        Args:
            sample: the picture.
            size: height and width that it is cut to.
            span: of a clip, which frames; None: it is a picture.
        """
        return self._cached(sample, size, False, span)

    def posterior(self, draw: SampleDraw) -> LatentDistribution:
        """Return the posterior of one draw, each tensor (1, ...) on the CPU.

        A centered picture has two variants, as it is and mirrored; both are cached.
        Where each draw sees other pixels, none comes twice. So it is of clips whose draws begin anywhere.
        """
        if self.keeps(draw):
            return self._cached(draw.sample, draw.size, self._flipped(draw), draw.span)
        (pixels,) = self.pixels.load(self._request("picture", draw))
        return self._encode(pixels.flip(-1) if self._flipped(draw) and not self._draws_differ else pixels, draw.sample)

    def latents(self, batch: Sequence[SampleDraw]) -> Tensor:
        """Return a latent of each draw, sampled from its posterior, (B, ...) on the CPU; all are of one size."""
        return torch.cat([self._latent(draw) for draw in batch])

    def texts(self, captions: Sequence[str], batch: Sequence[SampleDraw] | None = None) -> Conditioning:
        """Return what the frozen text encoders make of captions, on the CPU; no gradient.

        Args:
            captions: the texts.
            batch: the draw of each, whose references a text encoder may see as well; None: there are no references.
        """
        if batch is None or not self.reads_references(batch[0].sample):
            return Conditioning.cat([self._text(caption) for caption in captions])
        return Conditioning.cat([self._instruction(*pair) for pair in zip(captions, batch, strict=True)])

    def reads_references(self, sample: Sample) -> bool:
        """Check whether what the text encoders make of a sample's caption depends on its references."""
        return bool(sample.references) and self._family.text_reads_references

    def references(self, batch: Sequence[SampleDraw]) -> Conditioning:
        """Return the encoded references of each draw, on the CPU; no tensors where there are none."""
        return Conditioning.cat([self._encoded_references(draw) for draw in batch])

    def centered_references(self, sample: Sample, size: Size) -> Conditioning:
        """Return the encoded references of a picture with nothing random about it, one row on the CPU."""
        pixels = partial(self.pixels.load, PixelRequest("references", sample, size, None))
        return self._kept_references(sample, size, False, pixels)

    def centered_keys(self, sample: Sample, size: Size, span: FrameSpan | None) -> tuple[tuple[object, ...], ...]:
        """Return the keys of a picture's posterior, of its references and of its first caption, as measured on."""
        references = self._references_key(sample, size, False)
        return self._posterior_key(sample, size, False, span), references, self._centered_text_key(sample, size)

    def centered_text(self, sample: Sample, size: Size) -> Conditioning:
        """Return what the frozen text encoders make of a picture's first caption, one row on the CPU.

        Where they see references too, those have nothing random about them.
        """
        caption = sample.captions[0]
        if not self.reads_references(sample):
            return self._text(caption)
        key, request = self._centered_text_key(sample, size), PixelRequest("references", sample, size, None)
        return self._kept(key, lambda: self._encode_text(caption, self.pixels.load(request)))

    def _centered_text_key(self, sample: Sample, size: Size) -> tuple[object, ...]:
        caption = sample.captions[0]
        if not self.reads_references(sample):
            return self._text_key(caption)
        return "instruction", caption, *self._variant(sample, size, False)

    def masks(self, batch: Sequence[SampleDraw], grid: Grid) -> Tensor:
        """Return the mask of each draw over the rows and columns (h, w) of its latents, (B, 1, h, w) on the CPU."""
        return torch.stack([self._mask(draw, grid) for draw in batch])[:, None]

    def centered_mask(self, sample: Sample, size: Size, grid: Grid) -> Tensor | None:
        """Return the mask of a picture with nothing random about it, (1, 1, h, w) on the CPU; None: it has none."""
        return None if sample.mask is None else load_centered_mask(sample, size, grid)[None, None]

    def geometry(self, draw: SampleDraw) -> Geometry:
        """Return where the pixels of one draw lie in their picture."""
        return geometry_of(draw.sample, self._config, draw.size, self._seed, draw.draw_index, draw.span)

    def _latent(self, draw: SampleDraw) -> Tensor:
        posterior = self.posterior(draw)
        return posterior.mean + posterior.std * noise_like(posterior.mean, draw, self._seed, "posterior")

    def _mask(self, draw: SampleDraw, grid: Grid) -> Tensor:
        sample, own = draw.sample, (self._config, draw.size, grid, self._seed, draw.draw_index)
        if sample.mask is None or draws_differ(self._config):
            return load_mask(sample, *own)
        kind = "alpha" if sample.mask.location == sample.location else "file"
        place = (sample.width, sample.height, *draw.size, *grid, self._flipped(draw))
        key = ("mask", sample.mask.content, kind, *place)
        return self.store.get_or_compute(key, lambda: {"mask": load_mask(sample, *own)})["mask"]

    def posterior_key(self, draw: SampleDraw) -> tuple[object, ...]:
        """Return the key of a centered draw's posterior."""
        return self._posterior_key(draw.sample, draw.size, self._flipped(draw), draw.span)

    def _posterior_key(self, sample: Sample, size: Size, flipped: bool, span: FrameSpan | None) -> tuple[object, ...]:
        seen = "posterior", DECODING, sample.content, _in_key(size), rgb(self._config.background), flipped
        if span is None:
            return seen
        return *seen, clip_release(), span.count, span.start, span.rate_of(sample.frame_rate or span.rate)

    def _cached(self, sample: Sample, size: Size, flipped: bool, span: FrameSpan | None) -> LatentDistribution:
        key, request = (
            self._posterior_key(sample, size, flipped, span),
            PixelRequest("picture", sample, size, None, span),
        )

        def encoded() -> Tensors:
            (pixels,) = self.pixels.load(request)
            return vars(self._encode(pixels.flip(-1) if flipped else pixels, sample))

        return LatentDistribution(**self.store.get_or_compute(key, encoded))

    def _encode(self, pixels: Tensor, sample: Sample) -> LatentDistribution:
        posterior = self._family.encode_image(pixels[None])
        _check_finite(vars(posterior), "autoencoder", sample.path)
        return LatentDistribution(posterior.mean.cpu(), posterior.std.cpu())

    def text_key(self, caption: str, draw: SampleDraw) -> tuple[object, ...]:
        """Return the key of what the text encoders make of a draw's caption."""
        if self.reads_references(draw.sample):
            return "instruction", caption, *self._variant(draw.sample, draw.size, self._flipped(draw))
        return self._text_key(caption)

    def _text_key(self, caption: str) -> tuple[object, ...]:
        windows = self._family.token_windows
        return ("text", caption) if windows == 1 else ("text", caption, windows)

    def _text(self, caption: str) -> Conditioning:
        return self._kept(self._text_key(caption), lambda: self._encode_text(caption, ()))

    def _instruction(self, caption: str, draw: SampleDraw) -> Conditioning:
        """Return what the text encoders make of a caption beside the draw's references."""
        if self._draws_differ:
            return Conditioning(self._encode_text(caption, self._reference_pixels(draw)))
        return self._kept(
            self.text_key(caption, draw), lambda: self._encode_text(caption, self._reference_pixels(draw))
        )

    @torch.no_grad()
    def _encode_text(self, caption: str, references: Sequence[Tensor]) -> dict[str, Tensor]:
        family = self._family
        text = family.encode_instructions([caption], [references]) if references else family.encode_text([caption])
        tensors = dict(text.to("cpu").tensors)
        _check_finite(tensors, "text encoder", f"caption {caption!r:.60}")
        return tensors

    def _encoded_references(self, draw: SampleDraw) -> Conditioning:
        if not draw.sample.references:
            return NO_REFERENCES
        if self._draws_differ:
            return Conditioning(self._encode_references(draw.sample, self._reference_pixels(draw)))
        pixels = partial(self._reference_pixels, draw)
        return self._kept_references(draw.sample, draw.size, self._flipped(draw), pixels)

    def _kept_references(
        self, sample: Sample, size: Size, flipped: bool, pixels: Callable[[], Sequence[Tensor]]
    ) -> Conditioning:
        if not sample.references:
            return NO_REFERENCES
        key = self._references_key(sample, size, flipped)
        return self._kept(key, lambda: self._encode_references(sample, pixels()))

    def references_key(self, draw: SampleDraw) -> tuple[object, ...]:
        """Return the key of a centered draw's references."""
        return self._references_key(draw.sample, draw.size, self._flipped(draw))

    def _references_key(self, sample: Sample, size: Size, flipped: bool) -> tuple[object, ...]:
        return "references", *self._variant(sample, size, flipped)

    @torch.no_grad()
    def _encode_references(self, sample: Sample, pixels: Sequence[Tensor]) -> dict[str, Tensor]:
        tensors = dict(self._family.encode_references(pixels).to("cpu").tensors)
        _check_finite(tensors, "autoencoder", f"references of {sample.path}")
        return tensors

    def _reference_pixels(self, draw: SampleDraw) -> tuple[Tensor, ...]:
        return self.pixels.load(self._request("references", draw))

    def _flipped(self, draw: SampleDraw) -> bool:
        return is_flipped(draw.sample, self._config, self._seed, draw.draw_index)

    def _variant(self, sample: Sample, size: Size, flipped: bool) -> tuple[object, ...]:
        """Return all that a centered sample's references depend on, of JSON's types."""
        contents = [reference.content for reference in sample.references]
        return DECODING, "+".join(contents), _in_key(size), rgb(self._config.background), flipped

    def _kept(self, key: tuple[object, ...], compute: Callable[[], Tensors]) -> Conditioning:
        return Conditioning(self.store.get_or_compute(key, compute))


def _in_key(size: Size) -> int | Size:
    """Return a size as keys of the store have it: of a square its side, as always."""
    return size[0] if size[0] == size[1] else size


def _check_finite(tensors: Mapping[str, Tensor], part: str, where: object) -> None:
    """Refuse NaN and infinity of a frozen part: no training can learn from them, whatever its settings.

    Raises:
        UserError: there are some.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        what = f"the base's {part} makes NaN or infinity of it"
        remedy = f"use a base with another {part}, or load this one in float32"
        raise UserError(what, code="base.not_finite", where=where, remedy=remedy)


def _check_windows(family: Family, config: DataConfig) -> None:
    own, wanted = family.token_windows, config.token_windows
    if own != wanted:
        what = f"is {wanted}, and the base was loaded with {own}"
        remedy = f"load_base(..., token_windows={wanted})"
        raise UserError(what, code="family.other_token_windows", where="data.token_windows", remedy=remedy)


def store_of(config: RunConfig, family: Family) -> Store | None:
    """Return the cache on disk that a config names, for its base as it was loaded.

    Its keys hold all that the base's numbers depend on, to the last bit: weights, settings, and what the order of sums
    depends on, which is the number of threads, the device and the releases of the libraries that compute them.
    """
    if config.data.cache is None:
        return None
    parameter = next(parameter for network in family.networks.values() for parameter in network.parameters())
    quantization = "" if config.train.quantization == "none" else f" {config.train.quantization}"
    if config.train.text_encoder_quantization is not None:
        quantization += f" texts in {config.train.text_encoder_quantization}"
    releases = " ".join(version(package) for package in _LIBRARIES)
    machine = f"{_device_kind(parameter.device)} {torch.__version__} {releases} {torch.get_num_threads()}"
    base = f"{fingerprint(config.base)} {settings_hash(family.settings)} {parameter.dtype}"
    name = public_name(Path(config.base).name, "base")
    return Store(config.data.cache, f"{base} {machine}{quantization}", name)


def _device_kind(device: torch.device) -> str:
    """Return a name that devices share which compute the same bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def noise_like(latent_1: Tensor, draw: SampleDraw, seed: int, purpose: str) -> Tensor:
    """Draw standard normal noise of one draw, in the latent's shape: the same alone as in any batch."""
    generator = torch_generator(seed, draw.draw_index, draw.sample.id, purpose)
    return torch.randn(latent_1.shape, generator=generator)
