"""Events of a training run, for its callbacks: the bar, the trackers, and the log ``run.jsonl``.

Those of the training loop itself are in :mod:`veneer.train.events`. docs/events.md is made of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from veneer.data.preflight import Dataset
from veneer.evaluate.results import Evaluated, Score
from veneer.plan.plan import Plan
from veneer.train.events import (
    CheckpointDue,
    EncodingProgress,
    EvaluationDue,
    Finished,
    SampleDue,
    StepDone,
    StepSkipped,
    Stopped,
    TrainingStarted,
    Warned,
)

__all__ = [
    "EVENTS",
    "AdapterSaved",
    "BestAdapterSaved",
    "Callback",
    "CheckpointSaved",
    "EarlyStopped",
    "Failed",
    "MemoryMeasured",
    "Planned",
    "PriorSamplingStarted",
    "Resumed",
    "SamplesSaved",
    "SurveyAdvanced",
    "Surveyed",
    "TrackingStarted",
    "ignore",
]

Callback: TypeAlias = Callable[[object], None]
"""Called with each event of a run: those of this module and those of :mod:`veneer.train.events`."""


def ignore(event: object) -> None:
    """Do nothing with an event: the callback of whoever wants none."""


@dataclass(frozen=True)
class SurveyAdvanced:
    """Some pictures were looked over, of a survey that takes longer than a moment; for a bar, and in no log.

    Attributes:
        done: how many.
        total: how many there are.
    """

    done: int
    total: int


@dataclass(frozen=True)
class Surveyed:
    """The pictures were looked over; comes before anything that takes long.

    Attributes:
        train: how many there are to train on.
        held_out: how many are kept from it.
        rejected: why a picture is left out, by its path.
        notes: what the user may want to know, a sentence each.
    """

    train: int
    held_out: int
    rejected: Mapping[str, str]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> Surveyed:
        """Return the event of a dataset that was surveyed."""
        rejected = (*dataset.train.rejected, *dataset.held_out.rejected)
        reasons = {str(picture.path): picture.reason for picture in rejected}
        return cls(len(dataset.train.samples), len(dataset.held_out.samples), reasons, dataset.notes)


@dataclass(frozen=True)
class PriorSamplingStarted:
    """The base begins to paint pictures of the class, which takes a while.

    Attributes:
        count: how many.
        prompt: the class.
        folder: where they go.
    """

    count: int
    prompt: str
    folder: Path


@dataclass(frozen=True)
class Resumed:
    """The run goes on where a checkpoint was taken.

    Attributes:
        step: that it was taken after.
        path: of the checkpoint.
        losses: of the steps before it, as far as the folder's log has them, so that a smoothed loss goes on smoothly.
    """

    step: int
    path: Path
    losses: tuple[float, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Planned:
    """The run is planned: what will be trained and what it will take, before anything is done.

    Attributes:
        plan: parameters, file size, memory, steps, disk.
    """

    plan: Plan


@dataclass(frozen=True)
class TrackingStarted:
    """The run's curves go to a tracker.

    Attributes:
        tracker: its name.
        run: the run's name there.
        steps_sha256: of all that decides the steps; a run that is resumed with other settings is another one there.
        shown_by: the command or the page that shows it.
    """

    tracker: str
    run: str
    steps_sha256: str
    shown_by: str


@dataclass(frozen=True)
class SamplesSaved:
    """A sample sheet was painted.

    Attributes:
        step: after which; 0: by the base.
        path: of the sheet.
        timelapse: the strip of all sheets so far.
    """

    step: int
    path: Path
    timelapse: Path


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is on disk.

    Attributes:
        step: after which it was taken.
        path: of its folder.
    """

    step: int
    path: Path


@dataclass(frozen=True)
class EarlyStopped:
    """Training ends before its last step, because the held-out loss has not fallen for long.

    Attributes:
        step: steps done.
        best_step: after which the held-out loss was the lowest.
        scores: in a row that were not better.
        difference: the last score against the best one; None if the last one could not be measured.
    """

    step: int
    best_step: int
    scores: int
    difference: Score | None

    def __str__(self) -> str:
        """Return one line that says why."""
        text = f"stopped after step {self.step}: {self.scores} scores in a row are not better than that of step "
        text += f"{self.best_step}"
        return text if self.difference is None else f"{text}; held-out loss {self.difference.in_words}"


@dataclass(frozen=True)
class MemoryMeasured:
    """The training is over, and this was its fullest moment.

    Attributes:
        device: kind of it.
        before: bytes in use before the base was loaded: Python and its libraries; 0 on a GPU.
        peak: bytes in use at the fullest moment since.
    """

    device: str
    before: int
    peak: int


@dataclass(frozen=True)
class BestAdapterSaved:
    """The best adapter of a run is in a file beside the last one.

    Attributes:
        step: it was trained for.
        path: the file.
        loss: mean held-out loss of it.
        last_step: steps of the run.
        difference: the last adapter against it; None if it is the same, or could not be measured.
    """

    step: int
    path: Path
    loss: float
    last_step: int
    difference: Score | None

    def __str__(self) -> str:
        """Return one line for a person."""
        text = f"best held-out loss {self.loss:.4f}, after step {self.step}: {self.path}"
        if self.step == self.last_step:
            return f"{text}, the same as the last"
        return text if self.difference is None else f"{text}; the last one beside it: {self.difference.in_words}"


@dataclass(frozen=True)
class AdapterSaved:
    """The trained adapter is on disk, in one of its formats.

    Attributes:
        path: of its file, or of the folder that peft's format has for several files.
        sha256: of its bytes; of several files, of all in the order of their names.
        format: that it is written in.
    """

    path: Path
    sha256: str
    format: str = "diffusers"


@dataclass(frozen=True)
class Failed:
    """The run ended by a fault.

    Attributes:
        kind: the fault's class.
        code: what kind of fault it is, for programs: that of a ``UserError``, ``train.out_of_memory``,
            ``train.maybe_out_of_memory``, else ``unexpected``.
        text: its message.
    """

    kind: str
    code: str
    text: str


EVENTS: tuple[type, ...] = (
    SurveyAdvanced,
    Surveyed,
    PriorSamplingStarted,
    Resumed,
    Planned,
    TrainingStarted,
    TrackingStarted,
    EncodingProgress,
    StepDone,
    StepSkipped,
    SampleDue,
    SamplesSaved,
    EvaluationDue,
    Evaluated,
    CheckpointDue,
    CheckpointSaved,
    Warned,
    Stopped,
    EarlyStopped,
    Finished,
    MemoryMeasured,
    BestAdapterSaved,
    AdapterSaved,
    Score,
    Failed,
)
"""All that a run emits, in about the order in which it does; a log holds all of them but the first."""
