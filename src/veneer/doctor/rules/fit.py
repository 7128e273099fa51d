"""Rules about what was learned: too little, the training pictures by heart, or something beside the subject."""

from __future__ import annotations

import math

from veneer.config.adapter_config import AdapterConfig
from veneer.doctor.curve import training_gain
from veneer.doctor.evidence import Evidence, ValidationScore
from veneer.doctor.finding import Change, Finding, interval, percent, rank_changes
from veneer.doctor.limits import KEPT_GAIN, LITTLE_GAIN
from veneer.doctor.rules.gains import (
    destroys_weights,
    fewer_steps,
    has_gained,
    has_hardly_begun,
    has_learned,
    longer_training,
)

__all__ = ["drift", "overfit", "underfit"]

# diffusers' own names, in whatever family: the first text encoder of a pipeline, the projections of an attention layer
_TEXT_ENCODER = "text_encoder"
_ALL_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEWEST_SCORES = 3
"""Scores while training from which on their best says something."""


def underfit(evidence: Evidence) -> Finding | None:
    """Find a training that learned little, of training pictures and of others, and destroyed nothing."""
    if not evidence.has_finished:
        return None
    score, gain, is_short = evidence.held_out, training_gain(evidence), has_hardly_begun(evidence)
    learned = [has_gained(score)] if score is not None else []
    learned += [has_learned(gain)] if gain is not None else []
    if _is_harmful(evidence) or (not is_short and (any(learned) or not learned)):
        return None
    seen = [f"the held-out loss changes by {interval(score)} ({percent(score.share)} of the base's)"] if score else []
    seen += [gain.description] if gain else []
    seen.append(f"{evidence.ending.step} steps showed each picture {evidence.epochs:.2g} times")
    what = "The training had hardly begun." if is_short else "Little was learned, of any picture."
    advice = ("more pictures that have in common what should be learned",)
    sure = bool(learned) and not any(learned)
    return Finding("underfit", what, tuple(seen), _learning_changes(evidence), advice, sure=sure)


def _is_harmful(evidence: Evidence) -> bool:
    effects = (evidence.held_out, evidence.training)
    return destroys_weights(evidence) or any(effect is not None and effect.is_higher for effect in effects)


def _learning_changes(evidence: Evidence) -> tuple[Change, ...]:
    """Return changes for more learning, in the order of what most likely lacks: time, rate, room."""
    adapter, train = evidence.config.adapter, evidence.config.train
    changes = [longer_training(evidence), Change("train.learning_rate", train.learning_rate * 3, "bigger steps")]
    changes += rank_changes("adapter", adapter, adapter.rank * 2, "more room")
    if missing := _missing_targets(adapter):
        changes.append(Change("adapter.target_modules", (*(adapter.target_modules or ()), *missing), "more layers"))
    if not adapter.text_encoders:
        why = "adapts the text encoder too, for new words"
        changes.append(Change(f"adapter.text_encoders.{_TEXT_ENCODER}", (), why))
    return tuple(changes)


def _missing_targets(adapter: AdapterConfig) -> tuple[str, ...]:
    targets = adapter.target_modules
    if targets is None or not set(targets) < set(_ALL_ATTENTION):
        return ()  # other names: another family's layers, or all of these
    return tuple(name for name in _ALL_ATTENTION if name not in targets)


def overfit(evidence: Evidence) -> Finding | None:
    """Find training pictures that were learned by heart: they gain, others gain much less."""
    seen = [*_worsening(evidence), *_gap(evidence), *_copies(evidence)]
    if not seen:
        return None
    if evidence.ending.step and evidence.pictures.train:
        seen.append(f"each of {evidence.pictures.train} pictures was shown {evidence.epochs:.0f} times")
    advice = ("more pictures, of more different things",)
    return Finding("overfit", "The training pictures are learned by heart.", tuple(seen), _less(evidence), advice)


def _worsening(evidence: Evidence) -> tuple[str, ...]:
    """Tell whether the held-out score was better before the end, by more than its standard error and by a tenth."""
    if len(evidence.validation_scores) < _FEWEST_SCORES:
        return ()
    best, last = _best_score(evidence), evidence.validation_scores[-1]
    margin = max(best.effect.standard_error, 0.1 * abs(best.effect.mean))
    if last.effect.mean - best.effect.mean <= margin:
        return ()
    return (
        f"the held-out loss was best after step {best.step}: {interval(best.effect)}",
        f"after step {last.step} it is {interval(last.effect)}",
    )


def _best_score(evidence: Evidence) -> ValidationScore:
    return min(evidence.validation_scores, key=lambda score: score.effect.mean)


def _gap(evidence: Evidence) -> tuple[str, ...]:
    """Tell whether held-out pictures kept too little of the gain on training pictures, beyond chance."""
    score, gain = evidence.held_out, training_gain(evidence)
    if score is None or gain is None or not has_learned(gain):
        return ()
    chance = math.hypot(score.half_width / score.before, gain.half_width)
    if score.share <= KEPT_GAIN * gain.share or score.share - gain.share <= chance:
        return ()
    kept = percent(max(0.0, score.share / gain.share))
    return (
        f"{gain.description}: {percent(gain.share)}",
        f"on held-out pictures it changes by {interval(score)}: {percent(score.share)}, {kept} of that gain",
    )


def _copies(evidence: Evidence) -> tuple[str, ...]:
    """Tell whether painted pictures copy training pictures more often than by chance."""
    copies = evidence.copies
    if copies is None or copies.flagged <= max(1.0, 3 * copies.expected):
        return ()
    pair = " and ".join(copies.nearest)
    counts = f"{copies.flagged} of {copies.painted} painted pictures"
    return (f"{counts} are nearer to a training picture than real ones ever are, such as {pair}",)


def _less(evidence: Evidence) -> tuple[Change, ...]:
    adapter, train = evidence.config.adapter, evidence.config.train
    changes = [_earlier_end(evidence)]
    if adapter.rank > 1:
        changes += rank_changes("adapter", adapter, adapter.rank // 2, "less room to learn by heart in")
    if adapter.dropout < 0.1:
        changes.append(Change("adapter.dropout", 0.1, "hinders learning by heart"))
    if train.optimizer.weight_decay < 0.1:
        changes.append(Change("train.optimizer.weight_decay", 0.1, "keeps the adapter small"))
    return tuple(changes)


def _earlier_end(evidence: Evidence) -> Change:
    if len(evidence.validation_scores) < _FEWEST_SCORES:
        return fewer_steps(evidence, evidence.config.train.max_steps // 3, "stops before it has them by heart")
    step = _best_score(evidence).step
    kept = ", whose checkpoint is kept" if step in evidence.checkpoints else ""
    return fewer_steps(evidence, step, f"ends where held-out pictures were best{kept}")


def drift(evidence: Evidence) -> Finding | None:
    """Find pictures of other things, which the adapter should leave alone, that are denoised worse than by the base."""
    effect, prior = evidence.drift, evidence.config.data.prior
    if effect is None or not effect.is_higher or effect.share < LITTLE_GAIN:
        return None
    change = f"the loss changes by {interval(effect)} ({percent(effect.share)} of the base's)"
    seen = (f"on {evidence.drift_source or 'pictures of other things'} {change}",)
    changes = [fewer_steps(evidence, evidence.config.train.max_steps // 2, "less time to drift")]
    if prior is not None:
        changes.insert(0, Change("data.prior.weight", max(1.0, 2 * prior.weight), "holds the class more firmly"))
    return Finding("drift", "What the adapter should leave alone changes along.", seen, tuple(changes))
