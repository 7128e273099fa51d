"""The numbers of a run's plan beside those that were measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from veneer.report.content import PlanComparison
from veneer.report.readers.folder import RunFolder
from veneer.run.folder import CHECKPOINTS
from veneer.weights.checkpoint import checkpoints_in

__all__ = ["compare_plan"]


def compare_plan(run: RunFolder) -> Iterator[PlanComparison]:
    """Yield each number of the plan with the one that was measured; nothing without a plan."""
    plan, training, adapter = run.plan, run.training, run.adapter
    if not plan:
        return
    if adapter is not None:
        yield PlanComparison("parameters of the adapter", plan.get("trainable"), adapter.parameters, "parameters")
        yield PlanComparison("adapter file", plan.get("file_bytes"), adapter.size_bytes, "bytes")
    if training is not None:
        yield PlanComparison("steps", training.ending.max_steps, training.ending.step, "steps")
    if memory := plan.get("memory"):
        measured = None if training is None else training.memory_bytes
        yield PlanComparison(f"memory on {memory['device']}, at most", memory.get("peak"), measured, "bytes")
    if disk := plan.get("disk"):
        yield PlanComparison("a checkpoint", disk.get("checkpoint"), _checkpoint_bytes(run.path), "bytes")
    if training is not None and training.step_seconds is not None:
        yield PlanComparison("time of a step (median)", None, training.step_seconds, "seconds")


def _checkpoint_bytes(folder: Path) -> int | None:
    checkpoints = checkpoints_in(folder / CHECKPOINTS)
    return sum(path.stat().st_size for path in checkpoints[-1].iterdir()) if checkpoints else None
