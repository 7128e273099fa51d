"""All kinds of events that a run tells and that its log, ``run.jsonl``, may hold: docs/events.md is made of them."""

from __future__ import annotations

from veneer.evaluate.results import Evaluated, Score
from veneer.run.checkpoints import Checkpointed
from veneer.run.faults import Failed
from veneer.run.memory_usage import MemoryTaken
from veneer.run.resume import Resumed
from veneer.run.sampling import Sampled
from veneer.run.session import Planned, PriorPainting, Saved, Surveyed
from veneer.run.tracking import Tracked
from veneer.run.validation import BestKept, EarlyStopped
from veneer.train.events import (
    CheckpointDue,
    EvaluationDue,
    Finished,
    SampleDue,
    StepDone,
    Stopped,
    TrainingStarted,
    Warned,
)

__all__ = ["EVENTS"]

EVENTS: tuple[type, ...] = (
    Surveyed,
    PriorPainting,
    Resumed,
    Planned,
    TrainingStarted,
    Tracked,
    StepDone,
    SampleDue,
    Sampled,
    EvaluationDue,
    Evaluated,
    CheckpointDue,
    Checkpointed,
    Warned,
    Stopped,
    EarlyStopped,
    Finished,
    MemoryTaken,
    BestKept,
    Saved,
    Score,
    Failed,
)
"""In about the order in which a run tells them."""
