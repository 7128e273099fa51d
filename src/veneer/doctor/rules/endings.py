"""Rules about how a run ended: not a number, out of memory, killed, stopped."""

from __future__ import annotations

from dataclasses import replace

from veneer.config.schema import RunConfig
from veneer.doctor.evidence import Ending, Evidence, Memory
from veneer.doctor.finding import Change, Finding, percent, with_rank
from veneer.plan.memory import as_text
from veneer.run.faults import is_out_of_memory

__all__ = [
    "against_memory",
    "cut_off",
    "failed",
    "may_be_out_of_memory",
    "memory_changes",
    "not_a_number",
    "out_of_memory",
    "stopped",
]

_MAYBE_WORDS = ("could not create a primitive", "could not create a memory")
"""What oneDNN says when it gets no memory, and now and then for another reason."""
_SKIPPED = 0.02
_OVERFLOWED = 0.1


def not_a_number(evidence: Evidence) -> Finding | None:
    """A loss or a gradient was not finite, so that the run stopped or skipped the step."""
    ending, steps = evidence.ending, max(1, evidence.ending.step)
    said = []
    if ending.kind == "NonFinite":
        said.append(f"after step {ending.step} the run ended: {ending.text}")
    if evidence.skipped > _SKIPPED * steps:
        said.append(f"{evidence.skipped} of {steps} steps were not finite and changed nothing")
    if evidence.overflowed > _OVERFLOWED * steps:
        said.append(f"float16 overflowed in {evidence.overflowed} of {steps} steps")
    if not said:
        return None
    rate = evidence.config.train.learning_rate
    said.append(f"the rate is {rate:g}, the precision {evidence.config.train.precision}")
    return Finding("nan", "The numbers ran out of range (NaN or infinity).", tuple(said), _against_nan(evidence))


def _against_nan(evidence: Evidence) -> tuple[Change, ...]:
    train = evidence.config.train
    changes = [Change("train.learning_rate", train.learning_rate / 10, "the usual cause is a rate that is too high")]
    if train.precision == "float16":
        changes.insert(0, Change("train.precision", "bfloat16", "the same size with float32's range"))
    if train.max_grad_norm is None:
        changes.append(Change("train.max_grad_norm", 1.0, "one wild gradient then does no harm"))
    if train.warmup_steps == 0 and train.max_steps > 20:
        changes.append(Change("train.warmup_steps", train.max_steps // 20, "the first steps are the wildest"))
    return tuple(changes)


def may_be_out_of_memory(ending: Ending) -> bool:
    """Whether a run may have ended for want of memory: so told, or killed without a word."""
    told = is_out_of_memory(ending.kind, ending.text) or _is_maybe(ending)
    return ending.how == "cut off" or (ending.how == "failed" and told)


def _is_maybe(ending: Ending) -> bool:
    return any(words in ending.text.lower() for words in _MAYBE_WORDS)


def out_of_memory(evidence: Evidence) -> Finding | None:
    """The machine's memory did not suffice: told by the fault, or likely for a run that was killed without a word."""
    ending, memory = evidence.ending, evidence.memory
    said = []
    if is_out_of_memory(ending.kind, ending.text) or _is_maybe(ending):
        said.append(f"after step {ending.step} the run ended: {ending.kind}: {_first_line(ending.text)}")
    elif ending.how == "cut off" and memory and memory.available and memory.is_scarce:
        said.append(f"the log breaks off after step {ending.step} without a word, as when the system ends a process")
    if not said:
        return None
    if memory is not None:
        said.append(_memory_told(memory))
    return Finding(
        "out_of_memory",
        "The run needs more memory than there is.",
        tuple(said),
        against_memory(evidence),
        sure=is_out_of_memory(ending.kind, ending.text),
    )


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")


def _memory_told(memory: Memory) -> str:
    largest = sorted(memory.parts.items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {as_text(size)}" for name, size in largest)
    there = f" of {as_text(memory.available)} that this machine has" if memory.available else ""
    return f"the plan's peak is {as_text(memory.peak)}{there}" + (f": {parts}" if parts else "")


def against_memory(evidence: Evidence) -> tuple[Change, ...]:
    """The gentlest first: what leaves the result as it is, then what changes it; with the plan's peak of each."""
    return tuple(_planned(change, evidence.memory) for change in memory_changes(evidence.config))


def memory_changes(config: RunConfig) -> tuple[Change, ...]:
    """What makes a run need less memory."""
    train, adapter = config.train, config.adapter
    changes = []
    if train.memory != "checkpoint":
        changes.append(Change("train.memory", "checkpoint", "the same gradients for more time, far fewer activations"))
    if train.batch_size > 1:
        half = train.batch_size // 2
        changes.append(Change("train.batch_size", half, "half as many pictures at once"))
        changes.append(
            Change(
                "train.gradient_accumulation_steps",
                -(-train.batch_size * train.gradient_accumulation_steps // half),
                "the same gradient in more passes",
            )
        )
    if train.precision == "float32":
        changes.append(Change("train.precision", "bfloat16", "half as many bytes for activations"))
    if adapter.rank > 4:
        changes += with_rank("adapter", adapter, adapter.rank // 2, "half the adapter, its gradients and its moments")
    return tuple(changes)


def _planned(change: Change, memory: Memory | None) -> Change:
    """A change with the peak that the plan has for it."""
    peak = memory.after.get(change.override) if memory else None
    return change if peak is None else replace(change, why=f"{change.why}; the plan's peak is then {as_text(peak)}")


def cut_off(evidence: Evidence) -> Finding | None:
    """The log breaks off: the process was killed, or the machine went down."""
    if evidence.ending.how != "cut off":
        return None
    memory, steps = evidence.memory, f"{evidence.ending.step} of {evidence.config.train.max_steps}"
    said = [f"the log's last step is {steps}, and nobody is at work on it"]
    said += [f"the newest checkpoint is of step {evidence.checkpoints[-1]}"] if evidence.checkpoints else []
    said += [_memory_told(memory)] if memory else []
    enough = memory is not None and not memory.is_scarce
    cause = "Memory sufficed, by the plan" if enough else "A system that runs out of memory does that without a word"
    return Finding(
        "cut_off",
        f"The run was killed, or its machine went down: nothing says why. {cause}.",
        tuple(said),
        () if enough else against_memory(evidence)[:1],
        (_go_on(evidence),),
        sure=False,
    )


def failed(evidence: Evidence) -> Finding | None:
    """Another fault ended the run."""
    ending = evidence.ending
    if ending.how != "failed" or ending.kind == "NonFinite" or may_be_out_of_memory(ending):
        return None
    said = f"after step {ending.step}: {ending.kind}: {_first_line(ending.text)}"
    return Finding("failed", "The run ended by a fault.", (said,), advice=(_go_on(evidence),))


def stopped(evidence: Evidence) -> Finding | None:
    """Somebody stopped the run before its end, or it is still at work."""
    ending, steps = evidence.ending, evidence.config.train.max_steps
    if ending.how not in ("stopped", "running") or ending.step >= steps:
        return None
    said = f"{ending.step} of {steps} steps are done ({percent(ending.step / steps)})"
    advice = "ask again when it has ended" if ending.how == "running" else _go_on(evidence)
    return Finding("unfinished", f"The run is {ending.how}.", (said,), advice=(advice,), level="note")


def _go_on(evidence: Evidence) -> str:
    if not evidence.checkpoints:
        return "start it again; train.checkpoint_every keeps states to go on from"
    return "go on from the newest checkpoint: veneer train RUN/config.yaml --resume"
