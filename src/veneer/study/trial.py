"""One training of a study, in a folder of its own."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from veneer.adapter.protocol import AdapterWeights
from veneer.config.load import write_config
from veneer.config.schema import RunConfig
from veneer.data.preflight import Dataset
from veneer.engine.peak_memory import PeakMemory
from veneer.family.protocol import Family, device_of
from veneer.run.checkpoints import CheckpointManager
from veneer.run.events import Callback, Resumed
from veneer.run.folder import CHECKPOINTS, CONFIG, LOG, clear, make_writable
from veneer.run.identity import Identity
from veneer.run.lock import locked
from veneer.run.log import EventBus, EventLog, cut_log, events_in
from veneer.run.resume import check_same
from veneer.run.signals import Interrupted, stopping_at_signals
from veneer.study.config import Point
from veneer.train.events import CheckpointDue, Finished, Stopped, Warned
from veneer.train.loop import Trainer
from veneer.train.step import NonFinite
from veneer.weights.checkpoint import Checkpoint, newest_checkpoint
from veneer.weights.file import FILE_NAME, AdapterFile, save

__all__ = ["TRIALS", "Trial"]

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
        return self.run.config.output.dir


def _train_alone(run: Identity, family: Family, pictures: Dataset, callback: Callback) -> tuple[float, int | None]:
    """Train and save, without the sheet and the card that a run has; return its seconds and its most memory."""
    folder, emit = run.config.output.dir, EventBus(callback)
    make_writable(folder, "choose another --out FOLDER")
    with locked(folder):
        start = _start(run, emit)
        peak = PeakMemory(device_of(family))
        with closing(Trainer(run.config, family, pictures)) as trainer:
            if start is not None:
                trainer.load_state_dict(start.state)
                emit(Resumed(start.step, start.path))
            with _open_log(run.config, start) as log:
                emit.open(log)
                weights = _watch(trainer, _checkpoint_manager(run, start, emit), emit)
        save(AdapterFile(weights, run.metadata), folder / FILE_NAME)
        return _seconds(folder / LOG), peak.bytes()


def _start(run: Identity, emit: Callback) -> Checkpoint | None:
    """The newest whole checkpoint of the folder; it is named by the trial's hash, so nothing else can be in it."""
    start, faults = newest_checkpoint(run.config.output.dir / CHECKPOINTS)
    for fault in faults:
        emit(Warned("checkpoint.passed_over", f"a checkpoint is passed over: {fault}"))
    if start is not None:
        check_same(start, run, (), emit)
    return start


def _open_log(config: RunConfig, start: Checkpoint | None) -> EventLog:
    if start is None:
        clear(config.output.dir)
    else:
        cut_log(config.output.dir / LOG, start.step)
    write_config(config, config.output.dir / CONFIG)
    return EventLog(config.output.dir / LOG)


def _checkpoint_manager(run: Identity, start: Checkpoint | None, emit: Callback) -> CheckpointManager:
    last = None if start is None else (start.step, start.path)
    return CheckpointManager(
        run.config.output.dir / CHECKPOINTS, run.config.train.keep_checkpoints, run.origin, emit, last
    )


def _watch(trainer: Trainer, checkpoints: CheckpointManager, emit: Callback) -> AdapterWeights:
    weights: AdapterWeights = {}
    with stopping_at_signals(trainer.stop) as caught:
        try:
            for event in trainer.run():
                emit(event)
                if isinstance(event, CheckpointDue):
                    checkpoints.write(event.step, trainer.state_dict())
                elif isinstance(event, Stopped):
                    raise Interrupted(caught.number, event.step, checkpoints.last)
                elif isinstance(event, Finished):
                    weights = event.weights
        except NonFinite as fault:
            raise fault.with_note(checkpoints.last_in_words) from fault
    return weights


def _seconds(log: Path) -> float:
    """Of training: from each start to its last step, over all the starts that the log tells of."""
    total = began = last = 0.0
    for told in events_in(log):
        if told["event"] == "TrainingStarted":
            total += last - began
            began = last = told["seconds"]
        elif told["event"] == "StepDone":
            last = told["seconds"]
    return round(total + last - began, 3)
