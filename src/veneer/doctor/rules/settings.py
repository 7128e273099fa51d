"""Rules about the configuration alone: settings that no pictures and no base make up for."""

from __future__ import annotations

from veneer.doctor.evidence import Evidence
from veneer.doctor.finding import Change, Finding, percent
from veneer.doctor.rules.gains import strength
from veneer.train.optim import rate_factor

__all__ = ["decay_too_strong", "dropout_too_high", "strength_far_from_one", "warmup_too_long"]

_WARMUP_SHARE = 0.5
_DECAY = 3.0
_HIGH_DROPOUT = 0.5
_FAR_STRENGTH = 4.0


def warmup_too_long(evidence: Evidence) -> Finding | None:
    """Find a rate that rises for most of the run, so that few steps are trained at the rate that was asked for."""
    train = evidence.config.train
    if train.warmup_steps <= _WARMUP_SHARE * train.max_steps:
        return None
    mean = sum(rate_factor(train, step) for step in range(train.max_steps)) / train.max_steps
    seen = (
        f"the warm-up takes {train.warmup_steps} of {train.max_steps} steps",
        f"with lr_scheduler={train.lr_scheduler} the mean learning rate is {percent(mean)} of {train.learning_rate:g}",
    )
    changes = (Change("train.warmup_steps", train.max_steps // 20, "a twentieth of the steps is usual"),)
    return Finding("warmup_too_long", "The warm-up takes most of the run.", seen, changes)


def decay_too_strong(evidence: Evidence) -> Finding | None:
    """Find a weight decay that shrinks the adapter faster than it grows (Loshchilov and Hutter 2019, algorithm 2).

    A step multiplies by 1 - rate x decay and adds about the rate, so a parameter never gets beyond 1/decay.
    """
    train = evidence.config.train
    decayed = train.learning_rate * train.optimizer.weight_decay * train.max_steps
    if decayed < _DECAY:
        return None
    rate, decay = train.learning_rate, train.optimizer.weight_decay
    seen = (
        f"rate {rate:g} x decay {decay:g} x {train.max_steps} steps = {decayed:.2g}, "
        f"so what was learned is gone after {1 / (rate * decay):.0f} steps",
        f"no parameter gets beyond about 1/decay = {1 / decay:.2g}",
    )
    changes = (Change("train.optimizer.weight_decay", 0.01, "the usual one"),)
    return Finding("decay_too_strong", "Weight decay undoes what is learned.", seen, changes)


def dropout_too_high(evidence: Evidence) -> Finding | None:
    """Find a dropout that drops most of the adapter's inputs, or most captions."""
    data, adapter = evidence.config.data, evidence.config.adapter
    shares = {"adapter.dropout": adapter.dropout, "data.caption_dropout": data.caption_dropout}
    shares |= {f"adapter.text_encoders.{name}.dropout": part.dropout for name, part in adapter.text_encoders.items()}
    high = {key: share for key, share in shares.items() if share > _HIGH_DROPOUT}
    if not high:
        return None
    seen = tuple(f"{key} drops {percent(share)}" for key, share in high.items())
    changes = tuple(Change(key, 0.1, "0.05 to 0.1 is usual") for key in high)
    return Finding("dropout_too_high", "Most of what should teach is dropped out.", seen, changes)


def strength_far_from_one(evidence: Evidence) -> Finding | None:
    """Note a strength alpha / rank far from 1, with which a learning rate has another effect than usual."""
    adapter = evidence.config.adapter
    factor = strength(evidence)
    if 1 / _FAR_STRENGTH <= factor <= _FAR_STRENGTH:
        return None
    seen = (f"alpha / rank = {adapter.alpha:g} / {adapter.rank} = {factor:.3g}, and 1 is usual",)
    effect = "more" if factor > 1 else "less"
    what = f"What is learned is multiplied by {factor:.3g}, so a step changes the weights {effect} than its rate says."
    changes = (Change("adapter.alpha", float(adapter.rank), "makes the strength 1"),)
    return Finding("strength_far_from_one", what, seen, changes, level="note")
