"""The comparison of an adapter with its base: paired differences of denoising losses, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veneer.errors import UserError
from veneer.evaluate.interval import RESAMPLES, difference_interval, mean_interval
from veneer.evaluate.results import Band, Gap, Score, verdict_of

__all__ = [
    "DRIFT",
    "HELD_OUT",
    "TRAINING",
    "Comparison",
    "Losses",
    "compare_losses",
    "memorisation_gap",
    "nothing_held_out",
    "paired_difference",
    "time_bands",
]

Losses = npt.NDArray[np.float64]
"""Denoising losses, (pictures, draws)."""
HELD_OUT, TRAINING, DRIFT = "held-out", "training", "drift"
"""Kinds of pictures that are measured on."""
_MAX_BANDS = 5


@dataclass(frozen=True)
class Comparison:
    """The scores of an adapter on each kind of pictures; None or empty where there are no such pictures.

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


def compare_losses(adapter: Mapping[str, Losses], base: Mapping[str, Losses], seed: int) -> Comparison:
    """Compare the losses (pictures, draws) of adapter and base on each kind of pictures.

    Args:
        adapter: with the adapter, by ``HELD_OUT``, ``TRAINING``, ``DRIFT``; a kind may be missing.
        base: without, of the same kinds.
        seed: of the resampling.
    """
    scores = {kind: paired_difference(adapter[kind], base[kind], seed) for kind in base}
    has_gap = HELD_OUT in base and TRAINING in base
    return Comparison(
        held_out=scores.get(HELD_OUT),
        training=scores.get(TRAINING),
        gap=memorisation_gap(adapter, base, seed) if has_gap else None,
        bands=time_bands(adapter[HELD_OUT], base[HELD_OUT], seed) if HELD_OUT in base else (),
        drift=scores.get(DRIFT),
    )


def paired_difference(adapter: Losses, base: Losses, seed: int = 0, *, resamples: int = RESAMPLES) -> Score:
    """Score losses (pictures, draws) against those of the base, made with the same noise and times.

    Draws of one picture are not independent, so the interval is over pictures, of each picture's mean over its draws.

    Args:
        adapter: with the adapter.
        base: without.
        seed: of the resampling.
        resamples: number of resamples.

    Raises:
        UserError: there is no picture at all.
    """
    assert adapter.shape == base.shape and adapter.ndim == 2
    pictures, draws = adapter.shape
    if pictures == 0:
        raise nothing_held_out()
    differences_N = _differences(adapter, base)
    low, high = mean_interval(differences_N, seed, resamples)
    base_mean = float(base.mean())
    return Score(
        mean=float(differences_N.mean()),
        low=low,
        high=high,
        base=base_mean,
        adapter=float(adapter.mean()),
        pictures=pictures,
        draws=draws,
        verdict=verdict_of(low, high, base_mean),
    )


def time_bands(adapter: Losses, base: Losses, seed: int = 0) -> tuple[Band, ...]:
    """Score parts of time: as many equal ones as the draws fill evenly, five at most.

    Draw d lies in the d-th of D equal parts of time, so of 8 draws two lie in each of 4 bands, of 10 in each of 5.
    Seven draws fill no bands but one.
    """
    draws = adapter.shape[1]
    count = max(bands for bands in range(1, _MAX_BANDS + 1) if draws % bands == 0)
    parts = zip(np.split(adapter, count, axis=1), np.split(base, count, axis=1), strict=True)
    scores = [paired_difference(*part, seed) for part in parts]
    return tuple(Band(place / count, (place + 1) / count, score) for place, score in enumerate(scores))


def memorisation_gap(adapter: Mapping[str, Losses], base: Mapping[str, Losses], seed: int = 0) -> Gap:
    """Return the difference on held-out pictures less the difference on training pictures."""
    held_out_N, training_M = (_differences(adapter[kind], base[kind]) for kind in (HELD_OUT, TRAINING))
    low, high = difference_interval(held_out_N, training_M, seed)
    return Gap(float(held_out_N.mean() - training_M.mean()), low, high, len(held_out_N), len(training_M))


def nothing_held_out() -> UserError:
    """Return the error that there are no held-out pictures."""
    what, remedy = "no picture is held out to measure on", "hold out at least two"
    return UserError(what, code="evaluate.nothing_held_out", where="data.held_out", remedy=remedy)


def _differences(adapter: Losses, base: Losses) -> Losses:
    """Return the mean difference of each picture, (pictures,)."""
    differences_N: Losses = (adapter - base).mean(axis=1)
    return differences_N
