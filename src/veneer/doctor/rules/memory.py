"""Rule about memory: the run needs more than there is."""

from __future__ import annotations

from dataclasses import replace

from veneer.config.schema import RunConfig
from veneer.doctor.evidence import Ending, Evidence, MemoryEstimate
from veneer.doctor.finding import Change, Finding, rank_changes
from veneer.plan.text import format_bytes
from veneer.run.faults import MAYBE_OUT_OF_MEMORY, OUT_OF_MEMORY

__all__ = ["changes_with_peaks", "describe_memory", "memory_changes", "out_of_memory", "suspects_memory"]


def suspects_memory(ending: Ending) -> bool:
    """Return whether a run may have ended for want of memory: by its exception, or cut off without one."""
    return ending.how == "cut off" or (ending.how == "failed" and _is_memory_error(ending))


def _is_memory_error(ending: Ending) -> bool:
    return ending.code in (OUT_OF_MEMORY, MAYBE_OUT_OF_MEMORY)


def out_of_memory(evidence: Evidence) -> Finding | None:
    """Find a run that ended for want of memory: by its exception, or likely, if killed while memory was scarce."""
    ending, memory = evidence.ending, evidence.memory
    seen = []
    if _is_memory_error(ending):
        seen.append(f"after step {ending.step} the run ended: {ending.kind}: {ending.first_line}")
    elif ending.how == "cut off" and memory and memory.available and memory.is_scarce:
        seen.append(f"the log breaks off after step {ending.step} without a word, as when the system ends a process")
    if not seen:
        return None
    if memory is not None:
        seen.append(describe_memory(memory))
    return Finding(
        "out_of_memory",
        "The run needs more memory than there is.",
        tuple(seen),
        changes_with_peaks(evidence),
        sure=ending.code == OUT_OF_MEMORY,
    )


def describe_memory(memory: MemoryEstimate) -> str:
    """Return the plan's peak, what the machine has, and the three largest parts, as a sentence."""
    largest = sorted(memory.parts.items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in largest)
    available = f" of {format_bytes(memory.available)} that this machine has" if memory.available else ""
    return f"the plan's peak is {format_bytes(memory.peak)}{available}" + (f": {parts}" if parts else "")


def changes_with_peaks(evidence: Evidence) -> tuple[Change, ...]:
    """Return :func:`memory_changes`, each with the plan's peak after it where that is known."""
    return tuple(_with_peak(change, evidence.memory) for change in memory_changes(evidence.config))


def _with_peak(change: Change, memory: MemoryEstimate | None) -> Change:
    peak = memory.peak_after.get(change.override) if memory else None
    return (
        change if peak is None else replace(change, why=f"{change.why}; the plan's peak is then {format_bytes(peak)}")
    )


def memory_changes(config: RunConfig) -> tuple[Change, ...]:
    """Return changes that reduce a run's memory: first those that leave the result as it is."""
    train, adapter = config.train, config.adapter
    changes = []
    if train.memory != "checkpoint":
        changes.append(Change("train.memory", "checkpoint", "the same gradients for more time, far fewer activations"))
    if train.batch_size > 1:
        half = train.batch_size // 2
        passes = -(-train.batch_size * train.gradient_accumulation_steps // half)
        changes.append(Change("train.batch_size", half, "half as many pictures at once"))
        changes.append(Change("train.gradient_accumulation_steps", passes, "the same gradient in more passes"))
    if train.precision == "float32":
        changes.append(Change("train.precision", "bfloat16", "half as many bytes for activations"))
    if adapter.rank > 4:
        why = "half the adapter, its gradients and its moments"
        changes += rank_changes("adapter", adapter, adapter.rank // 2, why)
    return tuple(changes)
