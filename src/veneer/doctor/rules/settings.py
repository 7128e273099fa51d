"""Rules about the configuration alone: what no pictures and no base could make good."""

from __future__ import annotations

from veneer.doctor.evidence import Evidence
from veneer.doctor.finding import Change, Finding, percent
from veneer.train.optim import rate_factor

__all__ = ["decay_too_strong", "dropout_too_high", "strength_far_from_one", "warmup_too_long"]

_WARMUP = 0.5
_DECAYED = 3.0
_DROPOUT = 0.5
_STRENGTH = 4.0


def warmup_too_long(evidence: Evidence) -> Finding | None:
    """The rate rises for most of the run, so that little of it is trained at the rate that was asked for."""
    train = evidence.config.train
    if train.warmup_steps <= _WARMUP * train.max_steps:
        return None
    mean = sum(rate_factor(train, step) for step in range(train.max_steps)) / train.max_steps
    said = (
        f"the warm-up takes {train.warmup_steps} of {train.max_steps} steps",
        f"with lr_scheduler={train.lr_scheduler} the mean learning rate is {percent(mean)} of {train.learning_rate:g}",
    )
    changes = (Change("train.warmup_steps", train.max_steps // 20, "a twentieth of the steps is usual"),)
    return Finding("warmup_too_long", "The warm-up takes most of the run.", said, changes)


def decay_too_strong(evidence: Evidence) -> Finding | None:
    """AdamW's decay shrinks the adapter faster than it grows (Loshchilov and Hutter 2019, algorithm 2).

    A step multiplies by 1 - rate x decay and adds about the rate, so a parameter never gets beyond 1/decay.
    """
    train = evidence.config.train
    decayed = train.learning_rate * train.optimizer.weight_decay * train.max_steps
    if decayed < _DECAYED:
        return None
    rate, decay = train.learning_rate, train.optimizer.weight_decay
    said = (
        f"rate {rate:g} x decay {decay:g} x {train.max_steps} steps = {decayed:.2g}, "
        f"so what was learned is gone after {1 / (rate * decay):.0f} steps",
        f"no parameter gets beyond about 1/decay = {1 / decay:.2g}",
    )
    changes = (Change("train.optimizer.weight_decay", 0.01, "the usual one"),)
    return Finding("decay_too_strong", "Weight decay undoes what is learned.", said, changes)


def dropout_too_high(evidence: Evidence) -> Finding | None:
    """Most of what should teach is dropped: the adapter's inputs, or the captions."""
    data, adapter = evidence.config.data, evidence.config.adapter
    shares = {"adapter.dropout": adapter.dropout, "data.caption_dropout": data.caption_dropout}
    shares |= {f"adapter.text_encoders.{name}.dropout": part.dropout for name, part in adapter.text_encoders.items()}
    high = {key: share for key, share in shares.items() if share > _DROPOUT}
    if not high:
        return None
    said = tuple(f"{key} drops {percent(share)}" for key, share in high.items())
    changes = tuple(Change(key, 0.1, "0.05 to 0.1 is usual") for key in high)
    return Finding("dropout_too_high", "Most of what should teach is dropped out.", said, changes)


def strength_far_from_one(evidence: Evidence) -> Finding | None:
    """alpha/rank multiplies what is learned: far from 1, a rate means something else than elsewhere."""
    adapter = evidence.config.adapter
    strength = (adapter.alpha or adapter.rank) / adapter.rank
    if 1 / _STRENGTH <= strength <= _STRENGTH:
        return None
    said = f"alpha / rank = {adapter.alpha:g} / {adapter.rank} = {strength:.3g}, and 1 is usual"
    effect = "more" if strength > 1 else "less"
    return Finding(
        "strength_far_from_one",
        f"What is learned is multiplied by {strength:.3g}, so a step changes the weights {effect} than its rate says.",
        (said,),
        (Change("adapter.alpha", float(adapter.rank), "makes the strength 1"),),
        level="note",
    )
