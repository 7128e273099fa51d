"""Does the adapter help on pictures it never saw? Paired denoising losses, with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veneer.adapter.algebra import merge
from veneer.adapter.spec import Factors
from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest, Sample
from veneer.data.preflight import Dataset
from veneer.engine.precision import device_of, precision_of
from veneer.errors import UserError
from veneer.family.base import Family
from veneer.family.cache import Encoder
from veneer.keyed import key, torch_generator, uniform
from veneer.objective.loss import Objective

__all__ = ["Score", "evaluate", "heldout_losses", "paired_difference"]

Losses = npt.NDArray[np.float64]
_RESAMPLES = 10_000
_NUMBERS_AT_ONCE = 2**18
_SMALL = 10
"""Below this many pictures a percentile bootstrap is known to be too narrow (Efron and Tibshirani 1993, ch. 14)."""


@dataclass(frozen=True)
class Score:
    """The adapter's denoising loss less the base's, on the same pictures, noise and timesteps; below 0 is better.

    Attributes:
        mean: of the difference, over pictures.
        low: lower end of its 95 % interval; minus infinity for a single picture, which tells nothing of others.
        high: upper end; infinity likewise.
        base: mean loss without the adapter.
        adapter: mean loss with it.
        pictures: how many were measured on; they, not the draws, are what the interval counts as independent.
        draws: noise draws a picture.
    """

    mean: float
    low: float
    high: float
    base: float
    adapter: float
    pictures: int
    draws: int

    def __str__(self) -> str:
        """One line for a person."""
        text = f"held-out loss {self.base:.4f} -> {self.adapter:.4f}, difference {self.mean:+.4f}"
        if self.pictures == 1:
            return f"{text} on one picture, too few for an interval"
        text += f", 95 % interval [{self.low:+.4f}, {self.high:+.4f}] over {self.pictures} pictures"
        return text if self.pictures >= _SMALL else f"{text} (so few make it too narrow)"


def evaluate(config: RunConfig, family: Family, dataset: Dataset, factors: Factors) -> Score:
    """Score an adapter on the held-out pictures.

    The loss is the base's own (uniform timesteps, no weighting) whatever was trained with, so that scores of different
    runs can be compared. A base of float32 gives an adapter that does nothing a difference of exactly 0.

    Args:
        config: held-out draws, seed, resolution, precision.
        family: the base, without any adapter in it; it gets its bits back.
        dataset: whose held-out pictures are measured on.
        factors: the adapter.

    Raises:
        UserError: no picture is held out, or the adapter does not fit the base.
    """
    base = heldout_losses(config, family, dataset.held_out)
    merged = merge(family.networks, [(factors, 1.0)])
    try:
        adapter = heldout_losses(config, family, dataset.held_out)
    finally:
        merged.undo()
    return paired_difference(adapter, base, config.seed)


@torch.no_grad()
def heldout_losses(config: RunConfig, family: Family, held_out: Manifest) -> Losses:
    """Denoising losses (pictures, draws) by the networks as they stand; the same numbers each time.

    Nothing is random but the keyed noise: pictures are centered, latents are the posterior's means, captions the first
    ones. Draw d of D has its timestep in the d-th of D equal parts of time (stratified), and another one for each
    picture.
    """
    encoder = Encoder(family, config.data, config.data.resolution or family.resolution, config.seed)
    rows = [_picture_losses(config, family, encoder, sample) for sample in held_out.samples]
    return np.array(rows, dtype=np.float64).reshape(len(rows), config.evaluate.draws)


def _picture_losses(config: RunConfig, family: Family, encoder: Encoder, sample: Sample) -> Losses:
    """One picture's losses (draws,), its draws as one batch."""
    device, draws = device_of(family), config.evaluate.draws
    objective = Objective(family.noise)
    latent_1CHW = encoder.centered(sample).mean
    generators = [torch_generator(config.seed, sample.id, draw, "held-out noise") for draw in range(draws)]
    noise_DCHW = torch.cat([torch.randn(latent_1CHW.shape, generator=generator) for generator in generators])
    conditioning_DLD = encoder.conditioning(sample.captions[:1]).expand(draws, -1, -1)
    timestep_idx_D = objective.timesteps(_strata(config.seed, sample, draws))
    given = (latent_1CHW.expand_as(noise_DCHW), noise_DCHW, timestep_idx_D, conditioning_DLD)
    with precision_of(config.train.precision, device).autocast():
        loss_D = objective.loss_B(family.predict, *(tensor.to(device) for tensor in given))
    losses: Losses = loss_D.double().cpu().numpy()
    return losses


def _strata(seed: int, sample: Sample, draws: int) -> Tensor:
    """A number (draws,) in each of ``draws`` equal parts of [0, 1)."""
    numbers = [(draw + uniform(seed, sample.id, draw, "held-out timestep")) / draws for draw in range(draws)]
    return torch.tensor(numbers, dtype=torch.float64)


def paired_difference(adapter: Losses, base: Losses, seed: int = 0) -> Score:
    """Compare two arrays of losses (pictures, draws) made with the same noise and timesteps.

    The interval is a percentile bootstrap over pictures (Efron and Tibshirani 1993, section 13.3): draws of one picture
    are not independent, so a picture's mean over its draws is resampled whole.

    Args:
        adapter: with the adapter.
        base: without.
        seed: of the resampling.

    Raises:
        UserError: there is no picture at all.
    """
    assert adapter.shape == base.shape and adapter.ndim == 2
    pictures, draws = adapter.shape
    if pictures == 0:
        raise UserError("no picture is held out to measure on", where="data.held_out", remedy="hold out at least two")
    by_picture = (adapter - base).mean(axis=1)
    low, high = _interval(by_picture, seed) if pictures > 1 else (-math.inf, math.inf)
    means = float(by_picture.mean()), low, high, float(base.mean()), float(adapter.mean())
    return Score(*means, pictures=pictures, draws=draws)


def _interval(by_picture: Losses, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean."""
    generator = np.random.Generator(np.random.PCG64(key(seed, "bootstrap")))
    count = len(by_picture)
    # so many resamples at a time as a few megabytes hold, however many pictures there are
    rows = max(1, _NUMBERS_AT_ONCE // count)
    parts = [min(rows, _RESAMPLES - start) for start in range(0, _RESAMPLES, rows)]
    means = [by_picture[generator.integers(count, size=(part, count))].mean(axis=1) for part in parts]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)
