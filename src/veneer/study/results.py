"""The results of a study: trainings are entered as they end, and the table is written anew after each."""

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
from veneer.study.plot import plot
from veneer.study.statistics import Failure, Outcome, StoppedEarly, Table, tabulate
from veneer.study.tables import as_csv, as_markdown
from veneer.study.trial import StudyContext, Trial
from veneer.train.events import Warned

__all__ = ["StudyOutput", "StudyResults", "TrialFinished", "TrialStarted", "failure_of"]

_ERROR = "error.txt"
"""In a trial's folder: why it came to nothing, with all that Python tells."""


@dataclass(frozen=True)
class TrialStarted:
    """A training of the study has started, or has been resumed.

    Attributes:
        point: the way it is trained.
        seed: of the training.
        number: counts from 1.
        count: of all of the study's.
    """

    point: str
    seed: int
    number: int
    count: int


@dataclass(frozen=True)
class TrialFinished:
    """A training of the study has ended.

    Attributes:
        point: the way it was trained.
        seed: of the training.
        loss: mean held-out loss; None if it came to nothing, or was ended early.
        reason: why it came to nothing, or when it was ended.
        known: it was done already, in an earlier session.
        early: it was ended early by design.
    """

    point: str
    seed: int
    loss: float | None
    reason: str | None = None
    known: bool = False
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
        callback: is called with each entry.

    Attributes:
        context: as above.
        callback: as above.
        outcomes: by point and seed.
        failures: likewise; one that ended later is no failure.
        stopped: likewise, what was ended early; one that was trained whole later is not.
        order: of the points in the table.
        ranks: by point, where they were counted for a budget.
    """

    def __init__(self, context: StudyContext, callback: Callback) -> None:
        self.context, self.callback = context, callback
        self.outcomes: dict[tuple[str, int], Outcome] = {}
        self.failures: dict[tuple[str, int], Failure] = {}
        self.stopped: dict[tuple[str, int], StoppedEarly] = {}
        self.ranks: dict[str, str] | None = None
        self.order: list[str] = []
        self._base = context.base_losses()

    def expect(self, points: Sequence[Point]) -> None:
        """Give the order of the table, and, where ranks were counted for a budget, a column of them."""
        self.order = [point.name for point in points]
        if self.context.study.config.budget is not None:
            self.ranks = {point.name: str(point.changes["adapter.rank"]) for point in points}

    def add(self, outcome: Outcome, known: bool = False) -> None:
        """A trial is done; ``known``: it was already."""
        place = outcome.point, outcome.seed
        self.outcomes[place] = outcome
        self.failures.pop(place, None)
        self.stopped.pop(place, None)
        self._note(outcome.point, known)
        self.callback(TrialFinished(*place, float(outcome.losses.mean()), known=known))

    def add_failure(self, failure: Failure) -> None:
        """A trial came to nothing."""
        self.failures[failure.point, failure.seed] = failure
        self.stopped.pop((failure.point, failure.seed), None)
        self._note(failure.point)
        self.callback(TrialFinished(failure.point, failure.seed, None, failure.reason))

    def add_stopped(self, stopped: StoppedEarly, known: bool = False) -> None:
        """A trial was ended early; ``known``: in an earlier session."""
        place = stopped.point, stopped.seed
        self.stopped[place] = stopped
        self.failures.pop(place, None)
        self._note(stopped.point, known)
        self.callback(TrialFinished(*place, None, str(stopped), known, early=True))

    def table(self) -> Table:
        """Of what is entered so far."""
        config = self.context.study.config
        ordered = sorted(self.outcomes, key=lambda key: (self.order.index(key[0]), config.seeds.index(key[1])))
        return tabulate(
            [self.outcomes[key] for key in ordered],
            self._base,
            seeds=config.seeds,
            failures=list(self.failures.values()),
            stopped=list(self.stopped.values()),
            reference=None if config.search else config.reference or self.order[-1],
            margin=config.margin,
        )

    def save(self) -> None:
        """Write the table, if there is anything in it."""
        if self.outcomes:
            self._write(self.table())

    def close(self) -> StudyOutput:
        """Write the table and the plot.

        Raises:
            UserError: there is nothing in it.
        """
        if not self.outcomes:
            told = [f"{each.point}, seed {each.seed}: {each.reason}" for each in self.failures.values()]
            told += [f"{each.point}, seed {each.seed}: {each}" for each in self.stopped.values()]
            raise UserError(f"no training of the study ended; {told[0]}", where=self.context.folder)
        table = self.table()
        return StudyOutput(table, self.context.folder, (*self._write(table), *self._plot(table)))

    def _note(self, point: str, known: bool = False) -> None:
        if point not in self.order:
            self.order.append(point)
        if not known:  # what was known is in the table of before, or will be in the next
            self.save()

    def _write(self, table: Table) -> list[Path]:
        told = {
            "md": as_markdown(table, self.ranks),
            "json": to_json(table),
            "csv": as_csv(table),
            "yaml": dump_study(self.context.study.config),
        }
        paths = {ending: self.context.folder / f"study.{ending}" for ending in told}
        for ending, text in told.items():
            atomic_write(paths[ending], text.encode())
        return [paths[ending] for ending in ("md", "json", "csv")]

    def _plot(self, table: Table) -> list[Path]:
        path = self.context.folder / "study.png"
        try:
            atomic_write(path, plot(table, _title(self.context.study)))
        except UserError as fault:  # the tables are there; what they say does not hang on a picture
            self.callback(Warned("study.no_plot", f"no plot: {fault}"))
            return []
        return [path]


def _title(study: Study) -> str:
    steps, seeds = study.run.train.max_steps, len(study.config.seeds)
    return f"Study {study.name}: {steps} steps, {seeds} {'seed' if seeds == 1 else 'seeds'}"


def failure_of(trial: Trial, fault: Exception) -> Failure:
    """Why a trial came to nothing, in one line; the rest goes into a file of its folder."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    atomic_write(trial.folder / _ERROR, "".join(traceback.format_exception(fault)).encode())
    lines = str(fault).strip().splitlines() or [""]
    reason = lines[0] if isinstance(fault, UserError) else f"{type(fault).__name__}: {lines[0]}"
    return Failure(trial.point.name, trial.run.config.seed, reason)
