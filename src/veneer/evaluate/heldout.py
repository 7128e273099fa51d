"""Denoising losses on held-out pictures, which tell whether an adapter helps on pictures it never saw."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from veneer.adapter.apply import apply_adapter
from veneer.adapter.protocol import AdapterWeights
from veneer.config.schema import RunConfig
from veneer.data.buckets import BaseSizes, Buckets, Size
from veneer.data.clip_frames import FrameSpan
from veneer.data.manifest import Manifest, Sample
from veneer.data.preflight import Dataset
from veneer.data.transform import centered_geometry, load_centered_references
from veneer.engine.attention import trusted_attention
from veneer.engine.precision import precision_of
from veneer.errors import UserError
from veneer.evaluate.comparison import HELD_OUT, TRAINING, Comparison, Losses, compare_losses, nothing_held_out
from veneer.evaluate.results import Score
from veneer.family.cache import Encoder, store_of
from veneer.family.prompt_cache import adapts_texts
from veneer.family.protocol import Conditioning, Family, device_of
from veneer.family.references import check_references
from veneer.objective.loss import Objective
from veneer.rng import key, torch_generator, uniform
from veneer.weights.training_adapter import TrainingAdapter

__all__ = [
    "HeldOutEvaluator",
    "choose_pictures",
    "compare_adapter",
    "heldout_losses",
    "pictures_by_kind",
    "score_adapter",
    "unusual_sizes",
]


@dataclass(frozen=True)
class _NoisedPicture:
    """A picture with all that is random about its measurement.

    Attributes:
        sample: the picture.
        size: height and width that it is cut to.
        span: of a clip, which frames.
        latent_1: the posterior's mean (1, ...).
        references: of a pair, what it is made from, encoded, one row; else no tensors.
        mask_1: what of it counts (1, 1, h, w); None: all.
        noise_D: for each draw (D, ...).
        t_D: time of each draw, rising.
    """

    sample: Sample
    size: Size
    span: FrameSpan | None
    latent_1: Tensor
    references: Conditioning
    mask_1: Tensor | None
    noise_D: Tensor
    t_D: Tensor


class HeldOutEvaluator:
    """Measures denoising losses on a fixed set of pictures, the same way each time.

    Nothing is random but the keyed noise: pictures are centered, each at the largest of its sizes, latents are the
    posterior's means, captions the first ones. Draw d of D has a random time in the d-th of D equal parts of time
    (stratified sampling), another one for each picture. The loss is the base's own (uniform times, no weighting)
    whatever the adapter was trained with, so that different runs can be compared. Of a picture with a mask the loss is
    the mean over the mask: what is outside, such as a watermark, is what the adapter shall not learn, and an adapter
    that did would have the better score on the whole picture.

    Args:
        config: draws, seed, resolution, precision.
        family: whose networks are measured, as they stand.
        pictures: to measure on; they are encoded once.
        adapts_texts: whether an adapter may be in a text encoder when it measures; else captions are encoded once too.
    """

    def __init__(self, config: RunConfig, family: Family, pictures: Manifest, *, adapts_texts: bool = True) -> None:
        self._config, self._family = config, family
        self._adapts_texts = adapts_texts and family.networks.keys() != {family.denoiser}
        self._objective = Objective(family.noise)
        self._buckets = Buckets.of(config.data, family)
        self._encoder = Encoder(family, config.data, config.seed, store_of(config, family))
        if pictures.samples:
            check_references(family, pictures.references, pictures.samples[0].path)
        self._noised = [self._prepare(sample, self._encoder) for sample in pictures.samples]

    def with_captions_of(self, pictures: Manifest) -> HeldOutEvaluator:
        """Return an evaluator of some of these pictures with other captions; noise and latents are the same."""
        noised = {picture.sample.id: picture for picture in self._noised}
        evaluator = copy(self)
        evaluator._noised = [replace(noised[sample.id], sample=sample) for sample in pictures.samples]
        return evaluator

    @torch.no_grad()
    def losses(self) -> Losses:
        """Return denoising losses (pictures, draws) of the networks as they stand; the same numbers each time.

        Captions are encoded anew each time where an adapter may be in a text encoder as well.

        Raises:
            UserError: a loss is not finite.
        """
        rows = [self._picture_losses(picture) for picture in self._noised]
        return np.array(rows, dtype=np.float64).reshape(len(rows), self._config.validation.draws)

    def _prepare(self, sample: Sample, encoder: Encoder) -> _NoisedPicture:
        """Encode a picture, and draw its noise and times."""
        seed, draws = self._config.seed, self._config.validation.draws
        size, span = self._buckets.largest(sample.width, sample.height), self._buckets.clips.centered(sample)
        latent_1, references = encoder.centered(sample, size, span).mean, encoder.centered_references(sample, size)
        generators = [torch_generator(seed, sample.id, draw, "held-out noise") for draw in range(draws)]
        noise_D = torch.cat([torch.randn(latent_1.shape, generator=generator) for generator in generators])
        mask_1 = encoder.centered_mask(sample, size, (latent_1.shape[-2], latent_1.shape[-1]))
        return _NoisedPicture(
            sample,
            size,
            span,
            latent_1,
            references,
            mask_1,
            noise_D,
            _strata(seed, sample, draws, self._family.trained_times),
        )

    def _picture_losses(self, noised: _NoisedPicture) -> Losses:
        """Return the losses (draws,) of one picture, whose draws are one batch if the base lets them be."""
        conditioning, draws = self._conditioning(noised), len(noised.noise_D)
        at_once = self._family.inference_batch_size or draws
        parts = [slice(start, start + at_once) for start in range(0, draws, at_once)]
        losses: Losses = np.concatenate([self._draws_losses(noised, conditioning, part) for part in parts])
        if not np.isfinite(losses).all():
            what = f"the denoising loss on {noised.sample.path} is not finite"
            remedy = "lower train.learning_rate, or use float32 as train.precision"
            raise UserError(what, code="evaluate.loss_not_finite", remedy=remedy)
        return losses

    def _draws_losses(self, noised: _NoisedPicture, conditioning: Conditioning, part: slice) -> Losses:
        """Return the losses of some draws of a picture, which are one batch."""
        device, noise_D = device_of(self._family), noised.noise_D[part]
        latent_D = noised.latent_1.expand_as(noise_D)
        latent_D, noise_D, t_D = (tensor.to(device) for tensor in (latent_D, noise_D, noised.t_D[part]))
        told = conditioning.expand(len(noise_D)).to(device)
        mask_D = None if noised.mask_1 is None else noised.mask_1.expand(len(noise_D), -1, -1, -1).to(device)
        with precision_of(self._config.train.precision, device).autocast(), trusted_attention():
            loss_D = self._objective.loss_B(self._family.predict, latent_D, noise_D, t_D, told, mask_D)
        losses: Losses = loss_D.double().cpu().numpy()
        return losses

    def _conditioning(self, noised: _NoisedPicture) -> Conditioning:
        """Return the conditioning of a picture's first caption and of its references, one row on the CPU."""
        text = self._text(noised.sample).to("cpu")
        conditioning = self._family.condition(text, [centered_geometry(noised.sample, noised.size, noised.span)])
        return conditioning.joined_to(noised.references.tensors)

    def _text(self, sample: Sample) -> Conditioning:
        """Return what is made of a picture's first caption; once for all, where no adapter can change it."""
        if self._adapts_texts:
            return self._encode_text(sample)
        return self._encoder.centered_text(sample, self._buckets.largest(sample.width, sample.height))

    def _encode_text(self, sample: Sample) -> Conditioning:
        if not (sample.references and self._family.text_reads_references):
            return self._family.encode_text(sample.captions[:1])
        size = self._buckets.largest(sample.width, sample.height)
        pixels = load_centered_references(sample, self._config.data, size)
        return self._family.encode_instructions(sample.captions[:1], [pixels])


def heldout_losses(config: RunConfig, family: Family, pictures: Manifest) -> Losses:
    """Return the denoising losses (pictures, draws) that a ``HeldOutEvaluator`` measures."""
    return HeldOutEvaluator(config, family, pictures).losses()


def score_adapter(config: RunConfig, family: Family, dataset: Dataset, weights: AdapterWeights) -> Score:
    """Score an adapter on the held-out pictures.

    With a base of float32, an adapter that does nothing has a difference of exactly 0.

    Args:
        config: draws, pictures, seed, resolution, precision.
        family: the base, without any adapter in it; it gets its bits back.
        dataset: whose held-out pictures are measured on.
        weights: the adapter.

    Raises:
        UserError: no picture is held out, or the adapter does not fit the base.
    """
    held_out = choose_pictures(dataset.held_out, config.validation.pictures)
    if not held_out.samples:
        raise nothing_held_out()
    score = compare_adapter(config, family, {HELD_OUT: held_out}, weights).held_out
    assert score is not None
    return score


def compare_adapter(
    config: RunConfig, family: Family, kinds: Mapping[str, Manifest], weights: AdapterWeights
) -> Comparison:
    """Measure the base and the adapter on each kind of pictures, with the same noise and times.

    A training adapter that the config names is in both.

    Args:
        config: as for ``score_adapter``.
        family: as for ``score_adapter``.
        kinds: pictures by ``HELD_OUT``, ``TRAINING``, ``DRIFT``; a kind may be missing or empty.
        weights: the adapter.
    """
    evaluators = {
        kind: HeldOutEvaluator(config, family, pictures, adapts_texts=adapts_texts(family, weights))
        for kind, pictures in kinds.items()
        if pictures.samples
    }
    with TrainingAdapter(config.adapter, family.networks, family.denoiser).applied():
        base = {kind: evaluator.losses() for kind, evaluator in evaluators.items()}
        with apply_adapter(family.networks, weights):
            adapter = {kind: evaluator.losses() for kind, evaluator in evaluators.items()}
    return compare_losses(adapter, base, config.seed)


def pictures_by_kind(config: RunConfig, dataset: Dataset) -> dict[str, Manifest]:
    """Return held-out pictures, and as many training pictures or eight, ``validation.pictures`` of each at most."""
    held_out = choose_pictures(dataset.held_out, config.validation.pictures)
    limit = min(config.validation.pictures, max(len(held_out.samples), 8))
    return {HELD_OUT: held_out, TRAINING: choose_pictures(dataset.train, limit)}


def choose_pictures(pictures: Manifest, limit: int) -> Manifest:
    """Return at most ``limit`` pictures, those that a hash of their content ranks first, in their own order."""
    ranked = sorted(pictures.samples, key=lambda sample: key("measured on", sample.id))
    ids = {sample.id for sample in ranked[:limit]}
    return Manifest(tuple(sample for sample in pictures.samples if sample.id in ids))


def unusual_sizes(config: RunConfig, base: BaseSizes, pictures: Manifest) -> list[Size]:
    """Return the sizes, rising, that pictures are measured at, if any is not the square that the resolution names.

    Args:
        config: resolution, and whether pictures keep their shape.
        base: what the base says of its own sizes.
        pictures: that are measured on.
    """
    buckets = Buckets.of(config.data, base)
    sizes = sorted({buckets.largest(sample.width, sample.height) for sample in pictures.samples})
    return [] if sizes == [buckets.most] and sizes[0][0] == sizes[0][1] else sizes


def _strata(seed: int, sample: Sample, draws: int, times: tuple[float, float]) -> Tensor:
    """Return a random time (draws,) in each of ``draws`` equal parts of a range of them."""
    numbers = [(draw + uniform(seed, sample.id, draw, "held-out timestep")) / draws for draw in range(draws)]
    low, high = times
    return torch.tensor([low + number * (high - low) for number in numbers], dtype=torch.float64)
