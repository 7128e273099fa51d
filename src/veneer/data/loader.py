"""Choose the pictures of a step by pure functions of the seed and the step.

The pictures that a run draws are numbered from 0. Draw n belongs to step
n // (batch_size x gradient_accumulation_steps), so a step sees the same pictures however they are split into batches,
and a run that was stopped goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from veneer.data.manifest import Manifest, Sample
from veneer.rng import key

__all__ = ["SampleDraw", "draw_samples"]


@dataclass(frozen=True)
class SampleDraw:
    """One draw: a sample, and the draw's number among all of the run, from 0."""

    sample: Sample
    draw_index: int


def draw_samples(manifest: Manifest, seed: int, step: int, count: int) -> list[SampleDraw]:
    """Return the draws of one optimiser step.

    Args:
        manifest: what to draw from, at least one sample.
        seed: of the run.
        step: from 0.
        count: pictures a step, batch_size x gradient_accumulation_steps.

    Each epoch draws every sample ``repeats`` times in an order of its own; a step may span epochs.
    """
    length = sum(sample.repeats for sample in manifest.samples)
    assert length, "survey leaves no training set empty"
    draws = range(step * count, (step + 1) * count)
    return [SampleDraw(_epoch(manifest, seed, draw // length)[draw % length], draw) for draw in draws]


@lru_cache(maxsize=8)
def _epoch(manifest: Manifest, seed: int, epoch: int) -> tuple[Sample, ...]:
    """Return the repeated samples in an order keyed by their contents, so that names and paths do not change it."""
    repeated = [(sample, turn) for sample in manifest.samples for turn in range(sample.repeats)]
    repeated.sort(key=lambda repeat: key(seed, epoch, repeat[0].id, repeat[1], "order"))
    return tuple(sample for sample, _ in repeated)
