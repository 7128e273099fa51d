"""Rules about how a run ended: numbers out of range, an exception, killed, stopped."""

from __future__ import annotations

from veneer.doctor.evidence import Evidence
from veneer.doctor.finding import Change, Finding, percent
from veneer.doctor.rules.memory import changes_with_peaks, describe_memory, suspects_memory

__all__ = ["NOT_FINITE", "cut_off", "failed", "nan", "unfinished"]

NOT_FINITE = frozenset({"train.loss_not_finite", "train.gradient_not_finite"})
"""Codes of the exceptions that stop a run at a loss or a gradient that is not finite."""
_SKIPPED_SHARE = 0.02
_OVERFLOWED_SHARE = 0.1


def nan(evidence: Evidence) -> Finding | None:
    """Find losses or gradients that were not finite, so that the run stopped or skipped steps."""
    seen = _not_finite(evidence)
    if not seen:
        return None
    train = evidence.config.train
    seen.append(f"the rate is {train.learning_rate:g}, the precision {train.precision}")
    return Finding("nan", "The numbers ran out of range (NaN or infinity).", tuple(seen), _finite_changes(evidence))


def _not_finite(evidence: Evidence) -> list[str]:
    ending, steps = evidence.ending, max(1, evidence.ending.step)
    seen = []
    if ending.code in NOT_FINITE:
        seen.append(f"after step {ending.step} the run ended: {ending.text}")
    if evidence.skipped_steps > _SKIPPED_SHARE * steps:
        seen.append(f"{evidence.skipped_steps} of {steps} steps were not finite and changed nothing")
    if evidence.overflowed_steps > _OVERFLOWED_SHARE * steps:
        seen.append(f"float16 overflowed in {evidence.overflowed_steps} of {steps} steps")
    return seen


def _finite_changes(evidence: Evidence) -> tuple[Change, ...]:
    train = evidence.config.train
    changes = [Change("train.learning_rate", train.learning_rate / 10, "the usual cause is a rate that is too high")]
    if train.precision == "float16":
        changes.insert(0, Change("train.precision", "bfloat16", "the same size with float32's range"))
    if train.max_grad_norm is None:
        changes.append(Change("train.max_grad_norm", 1.0, "one wild gradient then does no harm"))
    if train.warmup_steps == 0 and train.max_steps > 20:
        changes.append(Change("train.warmup_steps", train.max_steps // 20, "the first steps are the wildest"))
    return tuple(changes)


def cut_off(evidence: Evidence) -> Finding | None:
    """Find a log that breaks off: the process was killed, or the machine went down."""
    if evidence.ending.how != "cut off":
        return None
    memory, steps = evidence.memory, f"{evidence.ending.step} of {evidence.config.train.max_steps}"
    seen = [f"the log's last step is {steps}, and nobody is at work on it"]
    seen += [f"the newest checkpoint is of step {evidence.checkpoints[-1]}"] if evidence.checkpoints else []
    seen += [describe_memory(memory)] if memory else []
    enough = memory is not None and not memory.is_scarce
    cause = "Memory sufficed, by the plan" if enough else "A system that runs out of memory does that without a word"
    return Finding(
        "cut_off",
        f"The run was killed, or its machine went down: nothing says why. {cause}.",
        tuple(seen),
        () if enough else changes_with_peaks(evidence)[:1],
        (_resume_advice(evidence),),
        sure=False,
    )


def failed(evidence: Evidence) -> Finding | None:
    """Find a run that another exception ended."""
    ending = evidence.ending
    if ending.how != "failed" or ending.code in NOT_FINITE or suspects_memory(ending):
        return None
    seen = f"after step {ending.step}: {ending.kind}: {ending.first_line}"
    return Finding("failed", "The run ended by a fault.", (seen,), advice=(_resume_advice(evidence),))


def unfinished(evidence: Evidence) -> Finding | None:
    """Note that a run was stopped before its end, or is still at work."""
    ending, steps = evidence.ending, evidence.config.train.max_steps
    if ending.how not in ("stopped", "running") or ending.step >= steps:
        return None
    seen = f"{ending.step} of {steps} steps are done ({percent(ending.step / steps)})"
    advice = "ask again when it has ended" if ending.how == "running" else _resume_advice(evidence)
    return Finding("unfinished", f"The run is {ending.how}.", (seen,), advice=(advice,), level="note")


def _resume_advice(evidence: Evidence) -> str:
    if not evidence.checkpoints:
        return "start it again; train.checkpoint_every keeps states to go on from"
    return f"go on from the newest checkpoint: veneer train {evidence.run}/config.yaml --resume"
