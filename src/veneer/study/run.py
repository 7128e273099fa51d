"""A study, whole: from its file to a table, a plot and advice, one training after another."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from veneer.config.load import resolve
from veneer.errors import UserError
from veneer.files import atomic_write
from veneer.plan.account import plan
from veneer.run.folder import make_writable
from veneer.run.lock import locked
from veneer.run.session import Callback
from veneer.study.config import Point, Study, config_of_point, dump_study, point_of, points_of
from veneer.study.plot import plot
from veneer.study.search import Proposer, space_of
from veneer.study.statistics import Failure, Outcome, StoppedEarly, Table, tabulate
from veneer.study.tables import as_csv, as_json, as_markdown
from veneer.study.trial import StudyContext, Trial
from veneer.train.events import Warned

__all__ = [
    "StudyResult",
    "StudyResults",
    "TrialBegins",
    "TrialEnds",
    "budget_points",
    "failure_of",
    "run_study",
    "study_folder",
]

_ERROR = "error.txt"
"""In a trial's folder: why it came to nothing, with all that Python tells."""


@dataclass(frozen=True)
class TrialBegins:
    """A training of the study begins, or goes on.

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
class TrialEnds:
    """A training of the study ended.

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
class StudyResult:
    """What a study leaves behind.

    Attributes:
        table: of its ways.
        folder: of its files.
        files: the table as Markdown, JSON and CSV, and the plot where matplotlib is installed.
    """

    table: Table
    folder: Path
    files: tuple[Path, ...]


def study_folder(study: Study) -> Path:
    """Where a study goes unless it is told otherwise: beside its run's own output.

    Raises:
        UserError: nothing can be beside that.
    """
    output = study.run.output.dir
    if output.name in ("", ".."):  # names the working directory, or one above, without saying its name
        output = output.resolve()
    if not output.name:
        raise UserError(
            "has no place beside it for a study", where="run.output.dir", remedy="choose one with --out FOLDER"
        )
    return output.with_name(f"{output.name}-{study.name}")


def run_study(study: Study, folder: Path, *, on: str = "here", callback: Callback = lambda event: None) -> StudyResult:
    """Train every point with every seed, measure each on the same held-out pictures, and compare them.

    Everything that can be refused is refused before the first training: a place or a library that there is not, before
    the pictures are read. Trials that are done are not done again: they are known by a hash of their configuration,
    base and pictures. One that fails is named in the table, and is tried again by the next call. The table is written
    anew after each.

    Args:
        study: from ``load_study``.
        folder: for the trials and the tables.
        on: ``here``, one after another, or ``ray``: on a cluster that shares the folder.
        listen: is told what happens.

    Raises:
        UserError: the study cannot be run as it is, or none of its trainings ended.
    """
    run = _runner(study, on)
    make_writable(folder, "choose another --out FOLDER")
    with locked(folder):
        context = StudyContext(study, folder, callback)
        results = StudyResults(context, callback)
        try:
            run(context, results)
        except BaseException:
            results.save()  # a study that is stopped has a table of what is done
            raise
        return results.close()


def _runner(study: Study, on: str) -> Callable[[StudyContext, StudyResults], None]:
    """What does the trials of a study.

    Raises:
        UserError: there is no such place, or what it or the search needs is not installed.
    """
    if on not in ("here", "ray"):
        raise UserError("is no place to run on", where=f"--on {on}", remedy="use here or ray")
    if study.config.search is not None:
        space_of(study.config.search)
    if on == "ray":
        from veneer.study.ray import need_ray, run_on_ray

        need_ray()
        return run_on_ray
    return _run_all if study.config.search is None else _search


class StudyResults:
    """Where a study's results are entered; its table is written anew after each that is new.

    Args:
        lab: of the study.
        listen: is told each entry.

    Attributes:
        lab: as above.
        listen: as above.
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

    def enter(self, outcome: Outcome, known: bool = False) -> None:
        """A trial is done; ``known``: it was already."""
        place = outcome.point, outcome.seed
        self.outcomes[place] = outcome
        self.failures.pop(place, None)
        self.stopped.pop(place, None)
        self._note(outcome.point, known)
        self.callback(TrialEnds(*place, float(outcome.losses.mean()), known=known))

    def fail(self, failure: Failure) -> None:
        """A trial came to nothing."""
        self.failures[failure.point, failure.seed] = failure
        self.stopped.pop((failure.point, failure.seed), None)
        self._note(failure.point)
        self.callback(TrialEnds(failure.point, failure.seed, None, failure.reason))

    def stop(self, stopped: StoppedEarly, known: bool = False) -> None:
        """A trial was ended early; ``known``: in an earlier session."""
        place = stopped.point, stopped.seed
        self.stopped[place] = stopped
        self.failures.pop(place, None)
        self._note(stopped.point, known)
        self.callback(TrialEnds(*place, None, str(stopped), known, early=True))

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

    def close(self) -> StudyResult:
        """Write the table and the plot.

        Raises:
            UserError: there is nothing in it.
        """
        if not self.outcomes:
            told = [f"{each.point}, seed {each.seed}: {each.reason}" for each in self.failures.values()]
            told += [f"{each.point}, seed {each.seed}: {each}" for each in self.stopped.values()]
            raise UserError(f"no training of the study ended; {told[0]}", where=self.context.folder)
        table = self.table()
        return StudyResult(table, self.context.folder, (*self._write(table), *self._plot(table)))

    def _note(self, point: str, known: bool = False) -> None:
        if point not in self.order:
            self.order.append(point)
        if not known:  # what was known is in the table of before, or will be in the next
            self.save()

    def _write(self, table: Table) -> list[Path]:
        told = {
            "md": as_markdown(table, self.ranks),
            "json": json.dumps(as_json(table), indent=1, allow_nan=False) + "\n",
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
            self.callback(Warned(f"no plot: {fault}"))
            return []
        return [path]


def _title(study: Study) -> str:
    steps, seeds = study.run.train.max_steps, len(study.config.seeds)
    return f"Study {study.name}: {steps} steps, {seeds} {'seed' if seeds == 1 else 'seeds'}"


def _run_all(context: StudyContext, results: StudyResults) -> None:
    """All points with the first seed, then all with the next: what ends early is a whole table with fewer seeds."""
    points = budget_points(context, results)
    results.order = [point.name for point in points]
    seeds = context.study.config.seeds
    trials = [context.trial(point, seed) for seed in seeds for point in points]
    for number, trial in enumerate(trials, start=1):
        _run(context, results, trial, number, len(trials))


def budget_points(context: StudyContext, results: StudyResults) -> list[Point]:
    """The study's points; those that share a budget and set no rank get the one whose count comes closest to it."""
    points = list(points_of(context.study.config))
    budget = context.study.config.budget
    if budget is None:
        return points
    (named,) = (point for point in points if point.name == budget)
    wanted = _count(context, named)
    points = [p if "adapter.rank" in p.changes else _with_rank(context, p, wanted) for p in points]
    results.ranks = {point.name: str(point.changes["adapter.rank"]) for point in points}
    return points


def _with_rank(context: StudyContext, point: Point, wanted: int) -> Point:
    """Counts grow by the same for each rank, so two of them tell all."""
    ranked = [replace(point, changes={**point.changes, "adapter.rank": rank}) for rank in (1, 2)]
    one, two = (_count(context, each) for each in ranked)
    rank = max(1, round(1 + (wanted - one) / (two - one)))
    return replace(point, changes={**point.changes, "adapter.rank": rank})


def _count(context: StudyContext, point: Point) -> int:
    try:
        config = resolve(config_of_point(context.study, point), context.family.resolution)
        return plan(config, context.family).trainable
    except UserError as fault:
        raise UserError(fault.what, where=f"point {point.name!r}", remedy=fault.remedy) from None


def _run(context: StudyContext, results: StudyResults, trial: Trial, number: int, count: int) -> Outcome | None:
    """Do one trial, or see that it is done; whatever goes wrong in it stays in it."""
    known = context.outcome(trial)
    if known is not None:
        results.enter(known, known=True)
        return known
    seed = trial.run.config.seed
    results.callback(TrialBegins(trial.point.name, seed, number, count))
    try:
        outcome = context.run(trial, results.callback)
    except Exception as fault:
        results.fail(failure_of(trial, fault))
        return None
    results.enter(outcome)
    return outcome


def failure_of(trial: Trial, fault: Exception) -> Failure:
    """Why a trial came to nothing, in one line; the rest goes into a file of its folder."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    atomic_write(trial.folder / _ERROR, "".join(traceback.format_exception(fault)).encode())
    lines = str(fault).strip().splitlines() or [""]
    reason = lines[0] if isinstance(fault, UserError) else f"{type(fault).__name__}: {lines[0]}"
    return Failure(trial.point.name, trial.run.config.seed, reason)


def _search(context: StudyContext, results: StudyResults) -> None:
    search, seeds = context.study.config.search, context.study.config.seeds
    assert search is not None
    proposer = Proposer(search, context.reference.seed)
    for number in range(search.trials):
        asked, changes = proposer.ask()
        proposer.report(
            asked, _try_point(context, results, point_of(changes), number * len(seeds), search.trials * len(seeds))
        )


def _try_point(context: StudyContext, results: StudyResults, point: Point, before: int, count: int) -> float | None:
    """A proposed point's mean loss over the seeds; None if a training of it came to nothing."""
    losses: list[float] = []
    for number, seed in enumerate(context.study.config.seeds, start=before + 1):
        if (point.name, seed) in results.outcomes:  # proposed twice
            losses.append(float(results.outcomes[point.name, seed].losses.mean()))
            continue
        try:
            trial = context.trial(point, seed)
        except UserError as fault:  # a proposal that cannot be trained is one that came to nothing
            results.fail(Failure(point.name, seed, str(fault)))
            return None
        outcome = _run(context, results, trial, number, count)
        if outcome is None:
            return None
        losses.append(float(outcome.losses.mean()))
    return sum(losses) / len(losses)
