"""Which pictures a step sees, and with which captions: pure functions of the seed and the step.

The pictures of a run are numbered from 0 in the order they are shown. Picture n belongs to step
n // (batch x accumulate), so a step sees the same pictures however they are split into batches, and a run that was
stopped goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from veneer.config.schema import DataConfig
from veneer.data.manifest import Manifest, Sample
from veneer.rng import key, uniform

__all__ = ["Pick", "caption_of", "picks"]


@dataclass(frozen=True)
class Pick:
    """One showing of a picture: the sample, and its number among all that the run shows, from 0."""

    sample: Sample
    draw_index: int


def picks(manifest: Manifest, seed: int, step: int, count: int) -> list[Pick]:
    """The pictures of one optimiser step.

    Args:
        manifest: what to draw from, at least one sample.
        seed: of the run.
        step: from 0.
        count: pictures a step, batch x accumulate.

    Each epoch shows every sample ``repeats`` times in an order of its own; a step may span epochs.
    """
    length = sum(sample.repeats for sample in manifest.samples)
    assert length, "survey leaves no training set empty"
    showings = range(step * count, (step + 1) * count)
    return [Pick(_epoch(manifest, seed, number // length)[number % length], number) for number in showings]


@lru_cache(maxsize=8)
def _epoch(manifest: Manifest, seed: int, epoch: int) -> tuple[Sample, ...]:
    """The repeated samples in an order keyed by their contents, so that names and paths have no say in it."""
    repeated = [(sample, turn) for sample in manifest.samples for turn in range(sample.repeats)]
    repeated.sort(key=lambda one: key(seed, epoch, one[0].id, one[1], "order"))
    return tuple(sample for sample, _ in repeated)


def caption_of(pick: Pick, config: DataConfig, seed: int) -> str:
    """The caption of one showing: one of the sample's, or now and then none."""
    if uniform(seed, pick.draw_index, pick.sample.id, "caption dropout") < config.caption_dropout:
        return ""
    captions = pick.sample.captions
    return captions[int(uniform(seed, pick.draw_index, pick.sample.id, "caption") * len(captions))]
