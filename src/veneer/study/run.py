"""A study from its configuration to a table, a plot and advice, one training after another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from veneer.errors import UserError
from veneer.files import opens_paths
from veneer.run.events import Callback
from veneer.run.folder import writable
from veneer.run.lock import locked
from veneer.study.budget import budget_points
from veneer.study.config import Point, Study, point_of
from veneer.study.context import StudyContext
from veneer.study.results import StudyOutput, StudyResults, TrialStarted, failure_of
from veneer.study.search import Proposer, space_of
from veneer.study.statistics import TrialFailure, TrialResult
from veneer.study.trial import Trial

__all__ = ["run_study", "study_folder"]


def study_folder(study: Study) -> Path:
    """Return the default folder of a study, beside its run's output folder.

    Raises:
        UserError: that is the root of a disk, which nothing is beside.
    """
    output = study.run.output.dir
    if output.name in ("", ".."):  # the working directory, or the one above
        output = output.resolve()
    if not output.name:
        what, remedy = "has no place beside it for a study", "choose one with --out FOLDER"
        raise UserError(what, code="study.no_folder", where="run.output.dir", remedy=remedy)
    return output.with_name(f"{output.name}-{study.name}")


@opens_paths
def run_study(study: Study, folder: Path, *, on: str = "local", callback: Callback = lambda event: None) -> StudyOutput:
    """Train every point with every seed, measure each on the same held-out pictures, and compare them.

    Everything that can be refused is refused before the first training, and a missing library even before the pictures
    are read. Trials that are done are not done again: they are known by a hash of their configuration, base and
    pictures. One that fails is named in the table, and is tried again by the next call. The table is written anew after
    each trial.

    Args:
        study: from ``load_study``.
        folder: for the trials and the tables.
        on: ``local``, one trial after another, or ``ray``, on a cluster that shares the folder.
        callback: is called with each event.

    Raises:
        UserError: the study cannot be run as it is, or none of its trainings ended.
    """
    run = _runner(study, on)
    with writable(folder, "choose another --out FOLDER"), locked(folder):
        context = StudyContext(study, folder, callback)
        results = StudyResults(context, callback)
        try:
            run(context, results)
        except BaseException:
            results.save()  # an interrupted study has a table of what is done
            raise
        return results.close()


def _runner(study: Study, on: str) -> Callable[[StudyContext, StudyResults], None]:
    """Return the function that runs the trials of a study.

    Raises:
        UserError: ``on`` is unknown, or a library that it or the search needs is not installed.
    """
    if on not in ("local", "ray"):
        raise UserError("is unknown", code="study.unknown_runner", where=f"--on {on}", remedy="use local or ray")
    if study.config.search is not None:
        space_of(study.config.search)
    if on == "ray":
        from veneer.study.ray import need_ray, run_on_ray

        need_ray()
        return run_on_ray
    return _run_all if study.config.search is None else _search


def _run_all(context: StudyContext, results: StudyResults) -> None:
    """Train all points with one seed after another, so that an interrupted study has a whole table of fewer seeds."""
    points = budget_points(context)
    results.expect(points)
    seeds = context.study.config.seeds
    trials = [context.trial(point, seed) for seed in seeds for point in points]
    for number, trial in enumerate(trials, start=1):
        _run(context, results, trial, number, len(trials))


def _run(context: StudyContext, results: StudyResults, trial: Trial, number: int, count: int) -> TrialResult | None:
    """Run one trial unless it is done; None if it fails, which ends no other trial."""
    result = context.result(trial)
    if result is not None:
        results.add(result, cached=True)
        return result
    seed = trial.run.config.seed
    results.callback(TrialStarted(trial.point.name, seed, number, count))
    try:
        result = context.run(trial, results.callback)
    except Exception as fault:
        results.add_failure(failure_of(trial, fault))
        return None
    results.add(result)
    return result


def _search(context: StudyContext, results: StudyResults) -> None:
    """Train the points that a sampler proposes, each with all seeds."""
    search, seeds = context.study.config.search, len(context.study.config.seeds)
    assert search is not None
    proposer = Proposer(search, context.reference.seed)
    for number in range(search.trials):
        proposal, changes = proposer.ask()
        loss = _try_point(context, results, point_of(changes), number * seeds, search.trials * seeds)
        proposer.report(proposal, loss)


def _try_point(context: StudyContext, results: StudyResults, point: Point, before: int, count: int) -> float | None:
    """Return a proposed point's mean loss over the seeds; None if a training of it failed."""
    losses: list[float] = []
    for number, seed in enumerate(context.study.config.seeds, start=before + 1):
        if (point.name, seed) in results.results:  # proposed twice
            losses.append(float(results.results[point.name, seed].losses.mean()))
            continue
        try:
            trial = context.trial(point, seed)
        except UserError as fault:  # a proposal that cannot be trained is one that failed
            results.add_failure(TrialFailure(point.name, seed, str(fault)))
            return None
        result = _run(context, results, trial, number, count)
        if result is None:
            return None
        losses.append(float(result.losses.mean()))
    return sum(losses) / len(losses)
