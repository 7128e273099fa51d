"""Questions about what a run learned that several rules ask."""

from __future__ import annotations

from veneer.doctor.curve import Gain
from veneer.doctor.evidence import Effect, Evidence
from veneer.doctor.finding import Change
from veneer.doctor.limits import DESTROYED_RATIO, FEW_EPOCHS, FEW_STEPS, LITTLE_GAIN

__all__ = [
    "destroys_weights",
    "fewer_steps",
    "has_gained",
    "has_hardly_begun",
    "has_learned",
    "longer_training",
    "strength",
    "weight_ratios",
]


def has_learned(gain: Gain) -> bool:
    """Return whether training pictures gained more than little, and for certain."""
    return gain.share < -LITTLE_GAIN and gain.share < -gain.half_width


def has_gained(score: Effect | None) -> bool:
    """Return whether held-out pictures gained more than little, and for certain."""
    return score is not None and score.is_lower and score.share < -LITTLE_GAIN


def has_hardly_begun(evidence: Evidence) -> bool:
    """Return whether a run is of few steps and few epochs; either alone may be intended."""
    return evidence.ending.step < FEW_STEPS and evidence.epochs < FEW_EPOCHS


def destroys_weights(evidence: Evidence) -> bool:
    """Return whether the adapter of any network outweighs the weights it is added to."""
    ratios = (change.ratio for change in evidence.weight_changes.values())
    return any(ratio is not None and ratio > DESTROYED_RATIO for ratio in ratios)


def weight_ratios(evidence: Evidence) -> tuple[str, ...]:
    """Return |delta W| / |W0| of each network where it is known, as sentences."""
    ratios = {network: change.ratio for network, change in evidence.weight_changes.items()}
    return tuple(f"{network}: |delta W| / |W0| = {ratio:.2g}" for network, ratio in ratios.items() if ratio is not None)


def strength(evidence: Evidence) -> float:
    """Return alpha / rank, which multiplies what the adapter learned."""
    adapter = evidence.config.adapter
    return (adapter.alpha or adapter.rank) / adapter.rank


def longer_training(evidence: Evidence) -> Change:
    """Return the change to three times as many steps, or a hundred if that is more."""
    return Change("train.max_steps", max(100, 3 * evidence.config.train.max_steps), "more steps")


def fewer_steps(evidence: Evidence, steps: int, why: str) -> Change:
    """Return the change to fewer steps that the warm-up leaves room for.

    Where the warm-up would not end in them it is as few steps as leave half for the rest, or a shorter warm-up.
    """
    train = evidence.config.train
    if steps > train.warmup_steps:
        return Change("train.max_steps", steps, why)
    if 2 * train.warmup_steps < train.max_steps:
        return Change("train.max_steps", 2 * train.warmup_steps, f"{why}, or nearly: the warm-up takes half")
    return Change("train.warmup_steps", max(steps, 1) // 20, "leaves room for fewer steps")
