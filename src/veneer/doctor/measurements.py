"""Measurements that a run does not make: paired denoising losses with shuffled captions, or with a part left out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import isfinite

import numpy as np

from veneer.adapter.apply import apply_adapter
from veneer.adapter.protocol import AdapterWeights
from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest, Sample
from veneer.data.preflight import Dataset
from veneer.doctor.evidence import Effect, Measurements, ShuffledCaptions
from veneer.evaluate.comparison import Losses, paired_difference
from veneer.evaluate.heldout import HeldOutEvaluator, choose_pictures
from veneer.evaluate.results import Score
from veneer.family.protocol import Family

__all__ = ["effect_of", "measure", "shuffle_captions", "without_words"]

_MAX_PICTURES = 32
_DRAWS = 4
_MAX_MISFITS = 3

_TRAIN, _HELD_OUT = "train", "held_out"
_WITHOUT_WORDS = "held_out without words"


def effect_of(score: Score) -> Effect:
    """Return a score as evidence: an open end of its interval is None, as in JSON."""
    low, high = (end if isfinite(end) else None for end in (score.low, score.high))
    return Effect(score.mean, low, high, score.base, score.adapter, score.pictures)


def measure(
    config: RunConfig, family: Family, dataset: Dataset, weights: AdapterWeights, shared_words: Collection[str] = ()
) -> Measurements:
    """Measure an adapter on ``validation.pictures`` of each kind, at most 32, four draws each: seconds on a small base.

    Args:
        config: the run's configuration.
        family: the base; it has its own bits again afterwards.
        dataset: the run's pictures.
        weights: the run's adapter.
        shared_words: words without which held-out captions are measured, too; empty: they are not.

    Raises:
        UserError: the losses are not finite.
    """
    sets = _picture_sets(config, dataset, shared_words)
    validation = config.validation.model_copy(update={"draws": _DRAWS})
    evaluators = _evaluators(config.model_copy(update={"validation": validation}), family, sets)
    base = _losses(evaluators)
    with apply_adapter(family.networks, weights):
        adapter = _losses(evaluators)
    return Measurements(
        train_captions=_shuffled_captions(_TRAIN, sets, base, adapter),
        held_out_captions=_shuffled_captions(_HELD_OUT, sets, base, adapter),
        text_encoder=_text_encoder_effect(family, evaluators, weights, adapter),
        without_shared_words=_effect(base[_WITHOUT_WORDS], adapter[_WITHOUT_WORDS]) if _WITHOUT_WORDS in sets else None,
    )


def _shuffled(kind: str) -> str:
    return f"{kind} shuffled"


def _picture_sets(config: RunConfig, dataset: Dataset, shared_words: Collection[str]) -> dict[str, Manifest]:
    """Return the sets of pictures to measure on, by name; empty ones are left out."""
    most = min(_MAX_PICTURES, config.validation.pictures)
    own = {_TRAIN: choose_pictures(dataset.train, most), _HELD_OUT: choose_pictures(dataset.held_out, most)}
    sets = own | {_shuffled(kind): shuffle_captions(pictures) for kind, pictures in own.items()}
    if shared_words:
        sets[_WITHOUT_WORDS] = without_words(own[_HELD_OUT], shared_words)
    return {name: pictures for name, pictures in sets.items() if pictures.samples}


def shuffle_captions(pictures: Manifest) -> Manifest:
    """Return the pictures, each with the caption of another one; those for which no other one differs are left out."""
    samples = pictures.samples
    return Manifest(
        tuple(
            replace(sample, captions=(other,))
            for place, sample in enumerate(samples)
            if (other := _other_caption(samples, place)) is not None
        )
    )


def _other_caption(samples: Sequence[Sample], place: int) -> str | None:
    own = samples[place].captions
    after = (*samples[place + 1 :], *samples[:place])
    return next((sample.captions[0] for sample in after if sample.captions[0] not in own), None)


def without_words(pictures: Manifest, words: Collection[str]) -> Manifest:
    """Return the pictures with their first captions alone, and those without the given words."""
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words), re.IGNORECASE)
    removed = [re.sub(r"(\s*,)+\s*", ", ", pattern.sub("", sample.captions[0])) for sample in pictures.samples]
    tidy = [" ".join(caption.split()).strip(" ,") for caption in removed]
    samples = zip(pictures.samples, tidy, strict=True)
    return Manifest(tuple(replace(sample, captions=(caption,)) for sample, caption in samples))


def _evaluators(config: RunConfig, family: Family, sets: Mapping[str, Manifest]) -> dict[str, HeldOutEvaluator]:
    """Return an evaluator for each set; those of the same pictures share the encoded pictures."""
    own = {kind: HeldOutEvaluator(config, family, sets[kind]) for kind in (_TRAIN, _HELD_OUT) if kind in sets}
    kinds = {name: _TRAIN if name.startswith(_TRAIN) else _HELD_OUT for name in sets}
    return {name: own[kinds[name]].with_captions_of(pictures) for name, pictures in sets.items()}


def _losses(evaluators: Mapping[str, HeldOutEvaluator]) -> dict[str, Losses]:
    return {name: evaluator.losses() for name, evaluator in evaluators.items()}


def _effect(before: Losses, after: Losses) -> Effect:
    return effect_of(paired_difference(after, before))


def _shuffled_captions(
    kind: str, sets: Mapping[str, Manifest], base: Mapping[str, Losses], adapter: Mapping[str, Losses]
) -> ShuffledCaptions | None:
    """Compare own and shuffled captions on the pictures that could be given another caption."""
    name = _shuffled(kind)
    if name not in sets:
        return None
    ids = [sample.id for sample in sets[name].samples]
    same = [place for place, sample in enumerate(sets[kind].samples) if sample.id in ids]
    added = (base[name] - base[kind][same]).mean(axis=1)
    misfits = [sets[name].samples[place].path.name for place in np.argsort(added)[:_MAX_MISFITS] if added[place] < 0]
    return ShuffledCaptions(
        _effect(base[kind][same], base[name]), _effect(adapter[kind][same], adapter[name]), tuple(misfits)
    )


def _text_encoder_effect(
    family: Family, evaluators: Mapping[str, HeldOutEvaluator], weights: AdapterWeights, whole: Mapping[str, Losses]
) -> Effect | None:
    """Compare the whole adapter with its denoiser's part alone; None if it has no other part."""
    denoiser = {path: layer for path, layer in weights.items() if path.startswith(f"{family.denoiser}.")}
    if len(denoiser) == len(weights):
        return None
    kind = _HELD_OUT if _HELD_OUT in evaluators else _TRAIN
    with apply_adapter(family.networks, denoiser):
        before = evaluators[kind].losses()
    return _effect(before, whole[kind])
