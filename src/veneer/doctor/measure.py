"""What a run did not measure and the doctor wants to know, by paired denoising losses as everywhere."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import isfinite

import numpy as np

from veneer.adapter.applied import applied
from veneer.adapter.protocol import AdapterWeights
from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest, Sample
from veneer.data.preflight import Dataset
from veneer.doctor.evidence import Effect, Exchange, Measured
from veneer.evaluate.heldout import HeldOutEvaluator, Losses, chosen, paired_difference
from veneer.evaluate.results import Score
from veneer.family.protocol import Family

__all__ = ["effect_of", "exchanged", "measure", "without_words"]

_PICTURES = 32
_DRAWS = 4
_WORST = 3


def effect_of(score: Score) -> Effect:
    """A score as the doctor reads it: an open end of its interval is None, as in JSON."""
    low, high = (end if isfinite(end) else None for end in (score.low, score.high))
    return Effect(score.mean, low, high, score.base, score.adapter, score.pictures)


def measure(
    config: RunConfig, family: Family, dataset: Dataset, weights: AdapterWeights, shared: Collection[str] = ()
) -> Measured:
    """Measure an adapter on ``validation.pictures`` of each kind, at most 32, four draws each: seconds on a small base.

    Args:
        config: of the run.
        family: the base; it has its own bits again afterwards.
        dataset: the run's pictures.
        weights: its adapter.
        shared: words that held-out captions are to be tried without, too; none: they are not.
    """
    sets = _sets(config, dataset, shared)
    asked = config.model_copy(update={"validation": config.validation.model_copy(update={"draws": _DRAWS})})
    evaluators = _evaluators(asked, family, sets)
    base = _losses(evaluators)
    with applied(family.networks, weights):
        adapter = _losses(evaluators)
    return Measured(
        train_captions=_exchange("train", sets, base, adapter),
        held_captions=_exchange("held", sets, base, adapter),
        text_encoder=_text_encoder(family, evaluators, weights, adapter),
        bare=_effect(base["bare"], adapter["bare"]) if "bare" in sets else None,
    )


def _sets(config: RunConfig, dataset: Dataset, shared: Collection[str]) -> dict[str, Manifest]:
    """What is measured on, by name; kinds that the run has no pictures of are left out."""
    most = min(_PICTURES, config.validation.pictures)
    train, held = chosen(dataset.train, most), chosen(dataset.held_out, most)
    sets = {"train": train, "held": held, "train exchanged": exchanged(train), "held exchanged": exchanged(held)}
    if shared:
        sets["bare"] = without_words(held, shared)
    return {name: pictures for name, pictures in sets.items() if pictures.samples}


def exchanged(pictures: Manifest) -> Manifest:
    """The same pictures, each with another one's caption; those for which no other one differs are left out."""
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
    """The same pictures, their first captions without some words."""
    found = re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words), re.IGNORECASE)
    bare = [re.sub(r"(\s*,)+\s*", ", ", found.sub("", sample.captions[0])) for sample in pictures.samples]
    tidy = [" ".join(caption.split()).strip(" ,") for caption in bare]
    return Manifest(tuple(replace(one, captions=(text,)) for one, text in zip(pictures.samples, tidy, strict=True)))


def _evaluators(config: RunConfig, family: Family, sets: Mapping[str, Manifest]) -> dict[str, HeldOutEvaluator]:
    """One for each set; those of the same pictures share what was encoded of them."""
    own = {kind: HeldOutEvaluator(config, family, sets[kind]) for kind in ("train", "held") if kind in sets}
    kinds = {name: "train" if name.startswith("train") else "held" for name in sets}
    return {name: own[kinds[name]].captioned(pictures) for name, pictures in sets.items()}


def _losses(evaluators: Mapping[str, HeldOutEvaluator]) -> dict[str, Losses]:
    return {name: evaluator.losses() for name, evaluator in evaluators.items()}


def _effect(before: Losses, after: Losses) -> Effect:
    return effect_of(paired_difference(after, before))


def _exchange(
    kind: str, sets: Mapping[str, Manifest], base: Mapping[str, Losses], adapter: Mapping[str, Losses]
) -> Exchange | None:
    """Own captions against exchanged ones, on the pictures that could be given another one's."""
    name = f"{kind} exchanged"
    if name not in sets:
        return None
    ids = [sample.id for sample in sets[name].samples]
    kept = [place for place, sample in enumerate(sets[kind].samples) if sample.id in ids]
    harm = (base[name] - base[kind][kept]).mean(axis=1)
    worst = [sets[name].samples[place].path.name for place in np.argsort(harm)[:_WORST] if harm[place] < 0]
    return Exchange(_effect(base[kind][kept], base[name]), _effect(adapter[kind][kept], adapter[name]), tuple(worst))


def _text_encoder(
    family: Family, evaluators: Mapping[str, HeldOutEvaluator], weights: AdapterWeights, whole: Mapping[str, Losses]
) -> Effect | None:
    """The whole adapter against its denoiser's part alone; None if it has no other part."""
    alone = {path: each for path, each in weights.items() if path.startswith(f"{family.denoiser}.")}
    if len(alone) == len(weights):
        return None
    name = "held" if "held" in evaluators else "train"
    with applied(family.networks, alone):
        before = evaluators[name].losses()
    return _effect(before, whole[name])
