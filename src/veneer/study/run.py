"""A study, whole: from its file to a table, a plot and advice, one training after another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from veneer.errors import UserError
from veneer.run.events import Callback
from veneer.run.folder import make_writable
from veneer.run.lock import locked
from veneer.study.budget import budget_points
from veneer.study.config import Point, Study, point_of
from veneer.study.results import StudyOutput, StudyResults, TrialStarted, failure_of
from veneer.study.search import Proposer, space_of
from veneer.study.statistics import Failure, Outcome
from veneer.study.trial import StudyContext, Trial

__all__ = ["run_study", "study_folder"]


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


def run_study(study: Study, folder: Path, *, on: str = "here", callback: Callback = lambda event: None) -> StudyOutput:
    """Train every point with every seed, measure each on the same held-out pictures, and compare them.

    Everything that can be refused is refused before the first training: a place or a library that there is not, before
    the pictures are read. Trials that are done are not done again: they are known by a hash of their configuration,
    base and pictures. One that fails is named in the table, and is tried again by the next call. The table is written
    anew after each.

    Args:
        study: from ``load_study``.
        folder: for the trials and the tables.
        on: ``here``, one after another, or ``ray``: on a cluster that shares the folder.
        callback: is called with each event.

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


def _run_all(context: StudyContext, results: StudyResults) -> None:
    """All points with the first seed, then all with the next: what ends early is a whole table with fewer seeds."""
    points = budget_points(context)
    results.expect(points)
    seeds = context.study.config.seeds
    trials = [context.trial(point, seed) for seed in seeds for point in points]
    for number, trial in enumerate(trials, start=1):
        _run(context, results, trial, number, len(trials))


def _run(context: StudyContext, results: StudyResults, trial: Trial, number: int, count: int) -> Outcome | None:
    """Do one trial, or see that it is done; whatever goes wrong in it stays in it."""
    known = context.outcome(trial)
    if known is not None:
        results.add(known, known=True)
        return known
    seed = trial.run.config.seed
    results.callback(TrialStarted(trial.point.name, seed, number, count))
    try:
        outcome = context.run(trial, results.callback)
    except Exception as fault:
        results.add_failure(failure_of(trial, fault))
        return None
    results.add(outcome)
    return outcome


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
            results.add_failure(Failure(point.name, seed, str(fault)))
            return None
        outcome = _run(context, results, trial, number, count)
        if outcome is None:
            return None
        losses.append(float(outcome.losses.mean()))
    return sum(losses) / len(losses)
