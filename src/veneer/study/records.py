"""The records of a study's trials on disk, by which a trial is done only once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from veneer.evaluate.comparison import Losses
from veneer.files import atomic_write
from veneer.serialise import from_data, to_json
from veneer.study.statistics import StoppedEarly, TrialResult
from veneer.study.trial import TRIALS, Trial

__all__ = ["StopRecord", "TrialRecord", "TrialStore"]

T = TypeVar("T")
_RECORD = "trial.json"


@dataclass(frozen=True)
class TrialRecord:
    """The record of a training that has ended.

    Attributes:
        digest: of the trial.
        changes: of its point.
        seed: of the training.
        trainable: number of trained parameters.
        file_bytes: size of the adapter file.
        seconds: duration of training, over all its parts if it was interrupted.
        memory_bytes: peak memory of the last part; None where that was not measured.
    """

    digest: str
    changes: Mapping[str, Any]
    seed: int
    trainable: int
    file_bytes: int
    seconds: float
    memory_bytes: int | None

    def result(self, point: str, losses: Losses) -> TrialResult:
        """Return the trial's result, with its held-out losses (pictures, draws)."""
        return TrialResult(
            point=point,
            seed=self.seed,
            trainable=self.trainable,
            file_bytes=self.file_bytes,
            losses=losses,
            seconds=self.seconds,
            memory_bytes=self.memory_bytes,
        )


@dataclass(frozen=True)
class StopRecord:
    """The record of a training that was stopped early on purpose.

    Attributes:
        digest: of the trial.
        changes: of its point.
        step: steps done.
        loss: mean held-out loss after them.
    """

    digest: str
    changes: Mapping[str, Any]
    step: int
    loss: float


class TrialStore:
    """Reads and writes the records of trials, each in its trial's folder.

    A record that is missing, damaged, or of another trial is None: what it is about can be done again.

    Args:
        folder: of the study.
        measurement: hash of all that held-out losses depend on beside the adapter; it is in the names of their files.
    """

    def __init__(self, folder: Path, measurement: str) -> None:
        self._trials, self._measurement = folder / TRIALS, measurement

    def record(self, trial: Trial) -> TrialRecord | None:
        """Return the record of a training that has ended."""
        record = _read_record(TrialRecord, trial.folder / _RECORD)
        return record if record is not None and record.digest == trial.digest else None

    def save_record(self, trial: Trial, record: TrialRecord) -> None:
        """Record that a training has ended."""
        atomic_write(trial.folder / _RECORD, to_json(record).encode())

    def losses(self, trial: Trial | None) -> Losses | None:
        """Return the held-out losses (pictures, draws) of a trial's adapter, or for None of the base alone."""
        values = _read_json(self._losses_file(trial))
        return None if values is None else np.array(values, dtype=np.float64)

    def save_losses(self, trial: Trial | None, losses: Losses) -> None:
        """Record the held-out losses of a trial's adapter, or for None of the base alone."""
        atomic_write(self._losses_file(trial), to_json(losses.tolist()).encode())

    def stopped(self, trial: Trial) -> StoppedEarly | None:
        """Return how a trial was stopped early."""
        record = _read_record(StopRecord, self._stop_file(trial.folder))
        if record is None or record.digest != trial.digest:
            return None
        config = trial.run.config
        return StoppedEarly(trial.point.name, config.seed, record.step, config.train.max_steps, record.loss)

    def save_stopped(self, trial: Trial, step: int, loss: float) -> None:
        """Record that a trial was stopped early, after ``step`` and at a mean held-out loss."""
        record = StopRecord(trial.digest, dict(trial.point.changes), step, loss)
        atomic_write(self._stop_file(trial.folder), to_json(record).encode())

    def tried_changes(self) -> list[Mapping[str, Any]]:
        """Return the changes of each point of which a trial has ended or was stopped early, each once."""
        folders = sorted(self._trials.glob("*/"))
        ended = [_read_record(TrialRecord, folder / _RECORD) for folder in folders]
        stopped = [_read_record(StopRecord, self._stop_file(folder)) for folder in folders]
        texts = [json.dumps(record.changes) for record in (*ended, *stopped) if record is not None]
        return [json.loads(text) for text in dict.fromkeys(texts)]

    def _losses_file(self, trial: Trial | None) -> Path:
        if trial is None:
            return self._trials / f"base-{self._measurement}.json"
        return trial.folder / f"score-{self._measurement}.json"

    def _stop_file(self, folder: Path) -> Path:
        return folder / f"stopped-{self._measurement}.json"


def _read_record(kind: type[T], path: Path) -> T | None:
    try:
        return from_data(kind, _read_json(path))
    except ValueError:
        return None


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if it is missing or not whole."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
