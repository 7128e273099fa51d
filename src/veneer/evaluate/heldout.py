"""Measure whether an adapter helps on pictures it never saw: paired denoising losses, with an interval."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veneer.adapter.applied import applied
from veneer.adapter.protocol import AdapterWeights
from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest, Sample
from veneer.data.preflight import Dataset
from veneer.data.transform import centered_geometry
from veneer.engine.precision import precision_of
from veneer.errors import UserError
from veneer.evaluate.interval import RESAMPLES, difference_interval, mean_interval
from veneer.evaluate.results import Band, Gap, Score, verdict_of
from veneer.family.cache import Encoder
from veneer.family.protocol import Conditioning, Family, device_of
from veneer.objective.loss import Objective
from veneer.rng import key, torch_generator, uniform

__all__ = [
    "DRIFT",
    "HELD_OUT",
    "TRAINING",
    "Comparison",
    "HeldOutEvaluator",
    "Losses",
    "bands_of",
    "chosen",
    "compare",
    "compared",
    "evaluate",
    "gap_between",
    "heldout_losses",
    "kinds_of",
    "paired_difference",
]

Losses = npt.NDArray[np.float64]
HELD_OUT, TRAINING, DRIFT = "held-out", "training", "drift"
"""Kinds of pictures that are measured on."""
_MOST_BANDS = 5


@dataclass(frozen=True)
class Comparison:
    """An adapter and its base on each kind of pictures; what there are no pictures for is None or empty.

    Attributes:
        held_out: on pictures that training never saw.
        training: on pictures that it saw.
        gap: between the two.
        bands: the held-out score by parts of time.
        drift: on pictures of other things.
    """

    held_out: Score | None
    training: Score | None
    gap: Gap | None
    bands: tuple[Band, ...]
    drift: Score | None


@dataclass(frozen=True)
class _Noised:
    """A picture with all that is random about its measurement.

    Attributes:
        sample: the picture.
        latent_1: the posterior's mean (1, ...).
        noise_D: noise of each draw (D, ...).
        t_D: time of each draw, rising.
    """

    sample: Sample
    latent_1: Tensor
    noise_D: Tensor
    t_D: Tensor


class HeldOutEvaluator:
    """Measures denoising losses on a fixed set of pictures, the same way each time.

    Nothing is random but the keyed noise: pictures are centered, latents are the posterior's means, captions the first
    ones. Draw d of D has its time in the d-th of D equal parts of time (stratified), and another one for each
    picture. The loss is the base's own (uniform times, no weighting) whatever is trained with, so that different
    runs can be compared.

    Args:
        config: draws, seed, resolution, precision.
        family: whose networks are measured, as they stand.
        pictures: to measure on; they are encoded once.
    """

    def __init__(self, config: RunConfig, family: Family, pictures: Manifest) -> None:
        self._config, self._family = config, family
        self._objective = Objective(family.noise)
        self._resolution = config.data.resolution or family.resolution
        encoder = Encoder(family, config.data, self._resolution, config.seed)
        self._noised = [self._prepare(sample, encoder.centered(sample).mean) for sample in pictures.samples]

    def captioned(self, pictures: Manifest) -> HeldOutEvaluator:
        """Return an evaluator of some of these pictures with other captions: the same noise, nothing encoded again."""
        by_id = {noised.sample.id: noised for noised in self._noised}
        evaluator = copy(self)
        evaluator._noised = [replace(by_id[sample.id], sample=sample) for sample in pictures.samples]
        return evaluator

    @torch.no_grad()
    def losses(self) -> Losses:
        """Return denoising losses (pictures, draws) by the networks as they stand; the same numbers each time.

        Captions are encoded anew each time: an adapter may be in the text encoder as well.
        """
        rows = [self._picture_losses(noised) for noised in self._noised]
        return np.array(rows, dtype=np.float64).reshape(len(rows), self._config.validation.draws)

    def _prepare(self, sample: Sample, latent_1: Tensor) -> _Noised:
        seed, draws = self._config.seed, self._config.validation.draws
        generators = [torch_generator(seed, sample.id, draw, "held-out noise") for draw in range(draws)]
        noise_D = torch.cat([torch.randn(latent_1.shape, generator=generator) for generator in generators])
        return _Noised(sample, latent_1, noise_D, self._objective.times(_strata(seed, sample, draws)))

    def _picture_losses(self, noised: _Noised) -> Losses:
        """Return one picture's losses (draws,), its draws as one batch."""
        device = device_of(self._family)
        latent_D = noised.latent_1.expand_as(noised.noise_D)
        latent_D, noise_D, t_D = (tensor.to(device) for tensor in (latent_D, noised.noise_D, noised.t_D))
        conditioning = self._conditioning(noised.sample).expand(len(noise_D)).to(device)
        with precision_of(self._config.train.precision, device).autocast():
            loss_D = self._objective.loss_B(self._family.predict, latent_D, noise_D, t_D, conditioning)
        losses: Losses = loss_D.double().cpu().numpy()
        if not np.isfinite(losses).all():
            what = f"the denoising loss on {noised.sample.path} is not finite"
            remedy = "lower train.learning_rate, or use float32 as train.precision"
            raise UserError(what, code="evaluate.loss_not_finite", remedy=remedy)
        return losses

    def _conditioning(self, sample: Sample) -> Conditioning:
        """Return what the denoiser is told of a picture, one row on the CPU."""
        text = self._family.encode_text(sample.captions[:1]).to("cpu")
        return self._family.condition(text, [centered_geometry(sample, self._resolution)])


def heldout_losses(config: RunConfig, family: Family, pictures: Manifest) -> Losses:
    """Return denoising losses (pictures, draws) by the networks as they stand."""
    return HeldOutEvaluator(config, family, pictures).losses()


def evaluate(config: RunConfig, family: Family, dataset: Dataset, weights: AdapterWeights) -> Score:
    """Score an adapter on the held-out pictures.

    A base of float32 gives an adapter that does nothing a difference of exactly 0.

    Args:
        config: draws, pictures, seed, resolution, precision.
        family: the base, without any adapter in it; it gets its bits back.
        dataset: whose held-out pictures are measured on.
        weights: the adapter.

    Raises:
        UserError: no picture is held out, or the adapter does not fit the base.
    """
    held_out = chosen(dataset.held_out, config.validation.pictures)
    if not held_out.samples:
        raise _nothing_held_out()
    score = compare(config, family, {HELD_OUT: held_out}, weights).held_out
    assert score is not None
    return score


def compare(config: RunConfig, family: Family, kinds: Mapping[str, Manifest], weights: AdapterWeights) -> Comparison:
    """Measure the base and the adapter on each kind of pictures, with the same noise and times.

    Args:
        config: as for ``evaluate``.
        family: as for ``evaluate``.
        kinds: pictures by ``HELD_OUT``, ``TRAINING``, ``DRIFT``; a kind may be missing or empty.
        weights: the adapter.
    """
    evaluators = {
        kind: HeldOutEvaluator(config, family, pictures) for kind, pictures in kinds.items() if pictures.samples
    }
    base = {kind: evaluator.losses() for kind, evaluator in evaluators.items()}
    with applied(family.networks, weights):
        adapter = {kind: evaluator.losses() for kind, evaluator in evaluators.items()}
    return compared(adapter, base, config.seed)


def compared(adapter: Mapping[str, Losses], base: Mapping[str, Losses], seed: int) -> Comparison:
    """Return the comparison of losses by kind of picture."""
    scores = {kind: paired_difference(adapter[kind], base[kind], seed) for kind in base}
    both = HELD_OUT in base and TRAINING in base
    return Comparison(
        held_out=scores.get(HELD_OUT),
        training=scores.get(TRAINING),
        gap=gap_between(adapter, base, seed) if both else None,
        bands=bands_of(adapter[HELD_OUT], base[HELD_OUT], seed) if HELD_OUT in base else (),
        drift=scores.get(DRIFT),
    )


def kinds_of(config: RunConfig, dataset: Dataset) -> dict[str, Manifest]:
    """Return held-out pictures, and as many training pictures or eight, ``validation.pictures`` of each at most."""
    held_out = chosen(dataset.held_out, config.validation.pictures)
    most = min(config.validation.pictures, max(len(held_out.samples), 8))
    return {HELD_OUT: held_out, TRAINING: chosen(dataset.train, most)}


def chosen(pictures: Manifest, most: int) -> Manifest:
    """Choose pictures, those that a hash ranks first, in their own order: the same ones whatever else is there."""
    ranked = sorted(pictures.samples, key=lambda sample: key("measured on", sample.id))[:most]
    kept = {sample.id for sample in ranked}
    return Manifest(tuple(sample for sample in pictures.samples if sample.id in kept))


def paired_difference(adapter: Losses, base: Losses, seed: int = 0, *, resamples: int = RESAMPLES) -> Score:
    """Compare two arrays of losses (pictures, draws) made with the same noise and times.

    Draws of one picture are not independent, so the interval is over pictures, of each picture's mean over its draws.

    Args:
        adapter: with the adapter.
        base: without.
        seed: of the resampling.
        resamples: how many.

    Raises:
        UserError: there is no picture at all.
    """
    assert adapter.shape == base.shape and adapter.ndim == 2
    pictures, draws = adapter.shape
    if pictures == 0:
        raise _nothing_held_out()
    by_picture = _gains(adapter, base)
    low, high = mean_interval(by_picture, seed, resamples)
    means = float(base.mean()), float(adapter.mean())
    return Score(float(by_picture.mean()), low, high, *means, pictures, draws, verdict_of(low, high, means[0]))


def bands_of(adapter: Losses, base: Losses, seed: int = 0) -> tuple[Band, ...]:
    """Return the score by parts of time: as many equal ones as the draws fill evenly, five at most.

    Draw d lies in the d-th of D equal parts of time, so of 8 draws two lie in each of 4 bands, of 10 in each of 5.
    Seven draws fill no bands but one.
    """
    draws = adapter.shape[1]
    count = max(bands for bands in range(1, _MOST_BANDS + 1) if draws % bands == 0)
    parts = zip(np.split(adapter, count, axis=1), np.split(base, count, axis=1), strict=True)
    scores = [paired_difference(*part, seed) for part in parts]
    return tuple(Band(place / count, (place + 1) / count, score) for place, score in enumerate(scores))


def gap_between(adapter: Mapping[str, Losses], base: Mapping[str, Losses], seed: int = 0) -> Gap:
    """Return the memorisation gap: difference on held-out pictures less difference on training pictures."""
    held_out, training = (_gains(adapter[kind], base[kind]) for kind in (HELD_OUT, TRAINING))
    low, high = difference_interval(held_out, training, seed)
    return Gap(float(held_out.mean() - training.mean()), low, high, len(held_out), len(training))


def _gains(adapter: Losses, base: Losses) -> Losses:
    gains: Losses = (adapter - base).mean(axis=1)
    return gains


def _strata(seed: int, sample: Sample, draws: int) -> Tensor:
    """Draw a number (draws,) in each of ``draws`` equal parts of [0, 1)."""
    numbers = [(draw + uniform(seed, sample.id, draw, "held-out timestep")) / draws for draw in range(draws)]
    return torch.tensor(numbers, dtype=torch.float64)


def _nothing_held_out() -> UserError:
    remedy = "hold out at least two"
    what = "no picture is held out to measure on"
    return UserError(what, code="evaluate.nothing_held_out", where="data.held_out", remedy=remedy)
