"""Rules about the learning rate: it is so high that training destroys, or so low that nothing moves."""

from __future__ import annotations

import math

from veneer.doctor.curve import final_loss, lowest_loss, training_gain
from veneer.doctor.evidence import Evidence
from veneer.doctor.finding import Change, Finding, interval
from veneer.doctor.limits import DEAD_RATIO, DIVERGED_RATIO, FEW_STEPS, LOSS_ERRORS, UNMOVED_RATIO
from veneer.doctor.rules.gains import (
    destroys_weights,
    has_gained,
    has_hardly_begun,
    has_learned,
    longer_training,
    strength,
    weight_ratios,
)

__all__ = ["dead_adapter", "diverged", "rate_too_high", "rate_too_low"]

_USUAL_RATE = 1e-4


def dead_adapter(evidence: Evidence) -> Finding | None:
    """Find an adapter that does nothing: B is zero, or delta W is negligible beside W0."""
    seen = []
    if evidence.ending.code == "adapter.untrained":
        seen.append("the run ended with every B at zero, as it begins")
    ratios = {network: change.ratio for network, change in evidence.weight_changes.items()}
    if ratios and all(ratio is not None and ratio < DEAD_RATIO for ratio in ratios.values()):
        seen += [f"{network}: |delta W| / |W0| = {ratio:.1e}" for network, ratio in ratios.items()]
    if not seen:
        return None
    if evidence.held_out is not None:
        seen.append(f"the held-out loss changes by {interval(evidence.held_out)}")
    seen += [f"the rate is {evidence.config.train.learning_rate:g}", f"alpha / rank is {strength(evidence):.2g}"]
    return Finding("dead_adapter", "The adapter does nothing.", tuple(seen), _reviving_changes(evidence))


def _reviving_changes(evidence: Evidence) -> tuple[Change, ...]:
    adapter, train = evidence.config.adapter, evidence.config.train
    if strength(evidence) < 0.1:
        return (Change("adapter.alpha", float(adapter.rank), "makes the strength alpha / rank 1"),)
    rate = Change("train.learning_rate", max(train.learning_rate * 100, _USUAL_RATE), "so that B moves")
    return (rate, longer_training(evidence)) if evidence.ending.step < FEW_STEPS else (rate,)


def diverged(evidence: Evidence) -> Finding | None:
    """Find a training loss that ends well above its best, by more than its noise."""
    last, lowest = final_loss(evidence), lowest_loss(evidence)
    if last is None or lowest is None or last.first == 1 or evidence.ending.step < FEW_STEPS:
        return None
    error = math.hypot(last.error, lowest.error)
    rises = last.loss > DIVERGED_RATIO * lowest.loss and last.loss - lowest.loss > LOSS_ERRORS * error
    base = evidence.held_out.before if evidence.held_out else math.inf
    is_above_base = last.loss > 2 * base
    if not rises and not is_above_base:
        return None
    seen = [f"the training loss is {last}, and was {lowest} at its best"]
    seen += [f"the base alone has {base:.4f}"] if is_above_base else []
    seen.append(f"the rate is {evidence.config.train.learning_rate:g}")
    return Finding("diverged", "The training ran away: its loss rises.", tuple(seen), _calming_changes(evidence))


def rate_too_high(evidence: Evidence) -> Finding | None:
    """Find a training that destroys without learning.

    Training pictures get no better, and either pictures get worse or the adapter outweighs the base's weights.
    """
    gain, measured = training_gain(evidence), (evidence.held_out, evidence.training)
    if gain is None or has_learned(gain):
        return None
    if not destroys_weights(evidence) and not any(effect is not None and effect.is_higher for effect in measured):
        return None
    score = f"the held-out loss changes by {interval(evidence.held_out)}" if evidence.held_out else "no held-out score"
    rate = f"the rate is {evidence.config.train.learning_rate:g}, alpha / rank is {strength(evidence):.2g}"
    return Finding(
        "rate_too_high",
        "The adapter destroys what the base can do, and learns nothing in return.",
        (score, gain.description, *weight_ratios(evidence), rate),
        _calming_changes(evidence),
    )


def _calming_changes(evidence: Evidence) -> tuple[Change, ...]:
    adapter, train = evidence.config.adapter, evidence.config.train
    changes = []
    if strength(evidence) > 2:
        changes.append(Change("adapter.alpha", float(adapter.rank), "makes the strength alpha / rank 1"))
    changes.append(Change("train.learning_rate", train.learning_rate / 10, "smaller steps"))
    for name, part in adapter.text_encoders.items():
        if part.learning_rate > train.learning_rate / 10:
            why = "the text encoder wants less than the denoiser"
            changes.append(Change(f"adapter.text_encoders.{name}.learning_rate", train.learning_rate / 20, why))
    if train.max_grad_norm is None:
        changes.append(Change("train.max_grad_norm", 1.0, "one wild gradient then does no harm"))
    return tuple(changes)


def rate_too_low(evidence: Evidence) -> Finding | None:
    """Find a training that was long enough and hardly moved anything: neither the loss nor the weights."""
    train, gain = evidence.config.train, training_gain(evidence)
    ratios = [change.ratio for change in evidence.weight_changes.values() if change.ratio is not None]
    if has_hardly_begun(evidence) or not evidence.has_finished or not ratios or max(ratios) >= UNMOVED_RATIO:
        return None
    if has_gained(evidence.held_out) or (gain is not None and has_learned(gain)):
        return None
    seen = [f"{evidence.ending.step} steps at a rate of {train.learning_rate:g}", *weight_ratios(evidence)]
    seen += [gain.description] if gain else []
    seen += [f"the held-out loss changes by {interval(evidence.held_out)}"] if evidence.held_out else []
    rate = max(train.learning_rate * 10, _USUAL_RATE)
    change = Change("train.learning_rate", rate, "and tenfold again until it learns")
    return Finding("rate_too_low", "The rate is so low that the weights hardly move.", tuple(seen), (change,))
