"""The results of a study: trainings are added as they end, and the table is written anew after each."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from veneer.errors import UserError
from veneer.files import atomic_write
from veneer.run.events import Callback
from veneer.serialise import to_json
from veneer.study.config import Point, Study, dump_study
from veneer.study.context import StudyContext
from veneer.study.plot import plot
from veneer.study.statistics import StoppedEarly, Table, TrialFailure, TrialResult, tabulate
from veneer.study.tables import as_csv, as_markdown
from veneer.study.trial import Trial
from veneer.train.events import Warned

__all__ = ["StudyOutput", "StudyResults", "TrialFinished", "TrialStarted", "failure_of"]

_ERROR = "error.txt"
"""In a trial's folder: the traceback of why it failed."""


@dataclass(frozen=True)
class TrialStarted:
    """A training of the study has started, or has been resumed.

    Attributes:
        point: name of the point.
        seed: of the training.
        number: of the trial; counts from 1.
        count: of all trials of the study.
    """

    point: str
    seed: int
    number: int
    count: int


@dataclass(frozen=True)
class TrialFinished:
    """A training of the study has ended.

    Attributes:
        point: name of the point.
        seed: of the training.
        loss: mean held-out loss; None if it failed, or was stopped early.
        reason: why it failed, or when it was stopped.
        cached: it was done already, in an earlier session.
        early: it was stopped early on purpose.
    """

    point: str
    seed: int
    loss: float | None
    reason: str | None = None
    cached: bool = False
    early: bool = False


@dataclass(frozen=True)
class StudyOutput:
    """A finished study's table and files.

    Attributes:
        table: of its points.
        folder: of its files.
        files: the table as Markdown, JSON and CSV, and the plot where matplotlib is installed.
    """

    table: Table
    folder: Path
    files: tuple[Path, ...]


class StudyResults:
    """The trainings of a study so far; its table is written anew after each that is new.

    Args:
        context: of the study.
        callback: is called with an event for each trial that is added.

    Attributes:
        context: as above.
        callback: as above.
        results: by point and seed.
        failures: likewise; a trial that succeeds later is no failure.
        stopped: likewise, trials that were stopped early; one that is trained whole later is not among them.
    """

    def __init__(self, context: StudyContext, callback: Callback) -> None:
        self.context, self.callback = context, callback
        self.results: dict[tuple[str, int], TrialResult] = {}
        self.failures: dict[tuple[str, int], TrialFailure] = {}
        self.stopped: dict[tuple[str, int], StoppedEarly] = {}
        self._ranks: dict[str, str] | None = None
        self._order: list[str] = []
        self._base = context.base_losses()

    def expect(self, points: Sequence[Point]) -> None:
        """Set the order of the table, and add a column of ranks where these were counted for a budget."""
        self._order = [point.name for point in points]
        if self.context.study.config.budget is not None:
            self._ranks = {point.name: str(point.changes["adapter.rank"]) for point in points}

    def add(self, result: TrialResult, cached: bool = False) -> None:
        """Add a trial that is done; ``cached``: it was done in an earlier session."""
        key = result.point, result.seed
        self.results[key] = result
        self.failures.pop(key, None)
        self.stopped.pop(key, None)
        self._update(result.point, cached)
        self.callback(TrialFinished(*key, float(result.losses.mean()), cached=cached))

    def add_failure(self, failure: TrialFailure) -> None:
        """Add a trial that failed."""
        key = failure.point, failure.seed
        self.failures[key] = failure
        self.stopped.pop(key, None)
        self._update(failure.point)
        self.callback(TrialFinished(*key, None, failure.reason))

    def add_stopped(self, stopped: StoppedEarly, cached: bool = False) -> None:
        """Add a trial that was stopped early; ``cached``: in an earlier session."""
        key = stopped.point, stopped.seed
        self.stopped[key] = stopped
        self.failures.pop(key, None)
        self._update(stopped.point, cached)
        self.callback(TrialFinished(*key, None, str(stopped), cached, early=True))

    def table(self) -> Table:
        """Return the table of all that is added so far."""
        config = self.context.study.config
        ordered = sorted(self.results, key=lambda key: (self._order.index(key[0]), config.seeds.index(key[1])))
        return tabulate(
            [self.results[key] for key in ordered],
            self._base,
            seeds=config.seeds,
            failures=list(self.failures.values()),
            stopped=list(self.stopped.values()),
            reference=None if config.search else config.reference or self._order[-1],
            margin=config.margin,
        )

    def save(self) -> None:
        """Write the table, if there is anything in it."""
        if self.results:
            self._write(self.table())

    def close(self) -> StudyOutput:
        """Write the table and the plot.

        Raises:
            UserError: no trial has ended.
        """
        if not self.results:
            reasons = [f"{each.point}, seed {each.seed}: {each.reason}" for each in self.failures.values()]
            reasons += [f"{each.point}, seed {each.seed}: {each}" for each in self.stopped.values()]
            what = f"no training of the study ended; {reasons[0]}"
            raise UserError(what, code="study.nothing_trained", where=self.context.folder)
        table = self.table()
        return StudyOutput(table, self.context.folder, (*self._write(table), *self._plot(table)))

    def _update(self, point: str, cached: bool = False) -> None:
        if point not in self._order:
            self._order.append(point)
        if not cached:  # what is cached is in the earlier table, or will be in the next
            self.save()

    def _write(self, table: Table) -> list[Path]:
        """Write the table and the study's configuration; return the table's files."""
        texts = {
            "md": as_markdown(table, self._ranks),
            "json": to_json(table),
            "csv": as_csv(table),
            "yaml": dump_study(self.context.study.config, self.context.folder),
        }
        paths = {ending: self.context.folder / f"study.{ending}" for ending in texts}
        for ending, text in texts.items():
            atomic_write(paths[ending], text.encode())
        return [paths[ending] for ending in ("md", "json", "csv")]

    def _plot(self, table: Table) -> list[Path]:
        path = self.context.folder / "study.png"
        try:
            atomic_write(path, plot(table, _title(self.context.study)))
        except UserError as fault:  # the tables are complete without a plot
            self.callback(Warned("study.no_plot", f"no plot: {fault}"))
            return []
        return [path]


def _title(study: Study) -> str:
    steps, seeds = study.run.train.max_steps, len(study.config.seeds)
    return f"Study {study.name}: {steps} steps, {seeds} {'seed' if seeds == 1 else 'seeds'}"


def failure_of(trial: Trial, fault: Exception) -> TrialFailure:
    """Return why a trial failed, in one line; the traceback is written into its folder."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    atomic_write(trial.folder / _ERROR, "".join(traceback.format_exception(fault)).encode())
    lines = str(fault).strip().splitlines() or [""]
    reason = lines[0] if isinstance(fault, UserError) else f"{type(fault).__name__}: {lines[0]}"
    return TrialFailure(trial.point.name, trial.run.config.seed, reason)
