"""One training of a study, in a folder of its own: a session that saves the adapter and does no more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from veneer.engine.peak_memory import PeakMemory
from veneer.family.protocol import device_of
from veneer.run.events import Callback
from veneer.run.folder import LOG, writable
from veneer.run.identity import Identity
from veneer.run.lock import locked
from veneer.run.log import EventBus, events_in
from veneer.run.preparation import TrainingInputs
from veneer.run.resume import check_same, newest_whole
from veneer.run.session import open_session
from veneer.study.config import Point
from veneer.weights.file import FILE_NAME, AdapterFile, save

__all__ = ["TRIALS", "Trial", "train_trial", "training_seconds"]

TRIALS = "trials"
"""Folder of a study's trainings."""


@dataclass(frozen=True)
class Trial:
    """One training of a study: a point with a seed.

    Attributes:
        point: that is trained.
        run: its resolved configuration, and fingerprints of base and pictures.
        digest: SHA-256 of all that decides its result; its folder is named by it.
    """

    point: Point
    run: Identity
    digest: str

    @property
    def folder(self) -> Path:
        """The folder it is trained in."""
        return self.run.folder


def train_trial(inputs: TrainingInputs, callback: Callback) -> tuple[float, int | None]:
    """Train and save, without the sheet, the card and the score that a run has.

    Args:
        inputs: of the training; where it starts is found in its folder.
        callback: is called with each event.

    Returns:
        Seconds of training, over all its starts, and the most memory in bytes; None where the system does not tell.

    Raises:
        UserError: it cannot be trained.
        Interrupted: a signal stopped it; its state is in a checkpoint.
    """
    run, emit = inputs.run, EventBus(callback)
    with writable(run.folder, "choose another --out FOLDER"), locked(run.folder):
        # the folder is named by the trial's hash, so nothing else can be in it
        start = newest_whole(run.folder, emit)
        if start is not None:
            check_same(start, run, (), emit)
        peak = PeakMemory(device_of(inputs.family))
        with open_session(replace(inputs, start=start), emit) as session:
            finished = session.train()
        save(AdapterFile(finished.weights, run.metadata), run.folder / FILE_NAME)
        return training_seconds(run.folder / LOG), peak.bytes()


def training_seconds(log: Path) -> float:
    """Return the seconds from each start to its last step, over all the starts in a log."""
    total = began = last = 0.0
    for event in events_in(log):
        if event["event"] == "TrainingStarted":
            total += last - began
            began = last = event["seconds"]
        elif event["event"] == "StepDone":
            last = event["seconds"]
    return round(total + last - began, 3)
