"""A study's trials on a Ray cluster: Ray Tune hands them out, and stops early the proposals of a search that do badly.

Trials write into the study's folder, as they do on one machine, so the machines must share it: what is done is known
there, a trial whose machine went away continues from its checkpoint, and the same call again does the rest.

Every trial of a grid is trained to its end, for the table compares ends. In a search, ASHA (Li et al. 2020) compares
proposals by their held-out loss after a ninth and a third of the steps, and stops all but the best third each time.
That is no failure: it is recorded in the trial's folder, and the same call again counts it as done.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from veneer.errors import UserError
from veneer.rng import key
from veneer.study.budget import budget_points
from veneer.study.config import Point, Study, point_of
from veneer.study.context import StudyContext
from veneer.study.results import StudyResults, failure_of
from veneer.study.search import changes_of, params_of, space_of
from veneer.study.statistics import TrialFailure
from veneer.study.trial import Trial
from veneer.train.events import StepDone

__all__ = ["need_ray", "run_on_ray", "rungs"]

_REDUCTION_FACTOR = 3
_RETRIES = 1  # where the machine went away
_NO_REASON = "Ray gives no reason"


def rungs(steps: int) -> tuple[int, ...]:
    """Return the steps after which a search's proposals are compared before their end: a ninth and a third of all."""
    first = max(1, steps // _REDUCTION_FACTOR**2)
    return tuple(step for step in (first, first * _REDUCTION_FACTOR) if step < steps)


def run_on_ray(context: StudyContext, results: StudyResults) -> None:
    """Run the trials of a study that are not done on a Ray cluster, or on this machine's cores if there is none.

    Args:
        context: of the study.
        results: takes in each trial that ends.

    Raises:
        UserError: Ray is not installed.
    """
    need_ray()
    import ray

    starts_ray = not ray.is_initialized()
    if starts_ray:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        (_search if context.study.config.search is not None else _run_all)(context, results)
    finally:
        if starts_ray:
            ray.shutdown()


def need_ray() -> None:
    """Check that Ray is installed, and set what it reads when it is imported.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its own tables, which verbose=0 does not silence
    # else it takes a trial that Ctrl-C interrupted for one that its scheduler stopped
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    try:
        importlib.import_module("ray")
    except ImportError:
        what, remedy = "is not installed", "pip install 'veneer[ray]'"
        raise UserError(what, code="study.ray_missing", where="--on ray", remedy=remedy) from None


def _run_all(context: StudyContext, results: StudyResults) -> None:
    """Train every point with every seed."""
    from ray import tune

    points = budget_points(context)
    results.expect(points)
    trials = [context.trial(point, seed) for seed in context.study.config.seeds for point in points]
    open_trials = _add_done(context, results, trials, cached=True)
    if not open_trials:
        return
    jobs = [(trial.point, trial.run.config.seed) for trial in open_trials]
    space = {"job": tune.grid_search(list(range(len(jobs))))}

    def on_complete(config: Mapping[str, Any], last_report: Mapping[str, Any]) -> None:
        _add_done(context, results, [open_trials[config["job"]]])

    for outcome in _fit(context, space, jobs, tune.TuneConfig(), on_complete):
        for trial in _add_done(context, results, [open_trials[outcome.config["job"]]]):
            results.add_failure(failure_of(trial, outcome.error or RuntimeError(_NO_REASON)))


def _add_done(
    context: StudyContext, results: StudyResults, trials: Sequence[Trial], *, cached: bool = False
) -> list[Trial]:
    """Add the trials that are done to the results, each once; return the others."""
    return [trial for trial in trials if not _add_if_done(context, results, trial, cached)]


def _add_if_done(context: StudyContext, results: StudyResults, trial: Trial, cached: bool) -> bool:
    if (trial.point.name, trial.run.config.seed) in results.results:
        return True
    result = context.result(trial)
    if result is not None:
        results.add(result, cached=cached)
    return result is not None


def _search(context: StudyContext, results: StudyResults) -> None:
    """Train the points that Optuna proposes; ASHA stops those that do badly."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    search, steps = context.study.config.search, context.reference.train.max_steps
    assert search is not None
    earlier = _earlier_proposals(context, results)
    if len(earlier) >= search.trials:
        return
    first_rung = next(iter(rungs(steps)), steps)
    asha = ASHAScheduler(time_attr="step", max_t=steps, grace_period=first_rung, reduction_factor=_REDUCTION_FACTOR)
    tune_config = tune.TuneConfig(
        metric="loss",
        mode="min",
        search_alg=_sampler(context, earlier),
        scheduler=asha,
        num_samples=search.trials - len(earlier),
    )

    def on_complete(config: Mapping[str, Any], last_report: Mapping[str, Any]) -> None:
        _add_ended(context, results, _trials(context, point_of(changes_of(config))), last_report)

    for outcome in _fit(context, {}, None, tune_config, on_complete):
        _add_outcome(context, results, point_of(changes_of(outcome.config)), outcome)


def _sampler(context: StudyContext, earlier: Sequence[tuple[dict[str, Any], float]]) -> Any:
    """Return Optuna's sampler for Ray Tune, which has learned from the proposals of earlier sessions."""
    from ray.tune.search.optuna import OptunaSearch

    search = context.study.config.search
    assert search is not None
    # with an earlier session's seed it would propose what that proposed
    seed = key(context.reference.seed, "search", len(earlier)) % 2**32
    params, losses = [params for params, _ in earlier], [loss for _, loss in earlier]
    evaluated = {"points_to_evaluate": params, "evaluated_rewards": losses} if earlier else {}
    return OptunaSearch(space_of(search), metric="loss", mode="min", seed=seed, **evaluated)


def _trials(context: StudyContext, point: Point) -> list[Trial]:
    """Return a proposal's trials, one for each seed; none where the point cannot be trained."""
    try:
        return [context.trial(point, seed) for seed in context.study.config.seeds]
    except UserError:
        return []


def _add_outcome(context: StudyContext, results: StudyResults, point: Point, outcome: Any) -> None:
    """Add what became of a proposal: its trials, or why there are none."""
    trials = _trials(context, point)
    open_trials = _add_done(context, results, trials)
    if not trials:
        results.add_failure(TrialFailure(point.name, context.study.config.seeds[0], _last_line(outcome.error)))
    elif open_trials and outcome.error is not None:
        results.add_failure(failure_of(open_trials[0], outcome.error))
    elif open_trials and (point.name, open_trials[0].run.config.seed) not in results.stopped:
        _add_ended(context, results, trials, outcome.metrics)


def _add_ended(
    context: StudyContext, results: StudyResults, trials: Sequence[Trial], last_report: Mapping[str, Any]
) -> None:
    """Add a proposal that ended without a fault; if it is not done, the scheduler stopped it at its last report."""
    open_trials = _add_done(context, results, trials)
    if open_trials and last_report:
        results.add_stopped(context.stop_early(open_trials[0], last_report["step"], last_report["loss"]))


def _last_line(fault: BaseException | None) -> str:
    """Return the message of a worker's exception, with which Ray's traceback ends."""
    lines = str(fault or "").strip().splitlines()
    return lines[-1].strip() if lines else _NO_REASON


def _earlier_proposals(context: StudyContext, results: StudyResults) -> list[tuple[dict[str, Any], float]]:
    """Add the proposals of earlier sessions to the results; return their parameters and losses.

    Those are returned that are done with all seeds, or were stopped early.
    """
    search = context.study.config.search
    assert search is not None
    space, earlier = space_of(search), []
    for changes in context.tried_changes():
        params = params_of(changes, space)
        if params is None:
            continue
        loss = _recorded_loss(context, results, _trials(context, point_of(changes)))
        if loss is not None:
            earlier.append((params, loss))
    return earlier


def _recorded_loss(context: StudyContext, results: StudyResults, trials: Sequence[Trial]) -> float | None:
    """Return the loss that a sampler learns of a proposal: the mean over its seeds, or the one it was stopped at."""
    if not trials:
        return None
    open_trials = _add_done(context, results, trials, cached=True)
    if not open_trials:
        done = [results.results[trial.point.name, trial.run.config.seed] for trial in trials]
        return sum(float(result.losses.mean()) for result in done) / len(done)
    stopped = context.stopped(open_trials[0])
    if stopped is None:
        return None
    results.add_stopped(stopped, cached=True)
    return stopped.loss


def _fit(
    context: StudyContext,
    space: Mapping[str, Any],
    jobs: Sequence[tuple[Point, int]] | None,
    tune_config: Any,
    on_complete: Callable[[Mapping[str, Any], Mapping[str, Any]], object],
) -> Any:
    """Let Ray Tune run its trials, and return what became of each.

    Args:
        context: of the study.
        space: that Ray Tune takes each trial's configuration from.
        jobs: a grid's points and seeds, of which a trial's configuration has the index; None for a search.
        tune_config: Ray Tune's own.
        on_complete: is called with the configuration and the last report of each of its trials that ended.
    """
    import ray
    from ray import tune

    resources = {"cpu": 1, "gpu": 1} if ray.cluster_resources().get("GPU") else {"cpu": 1}
    arguments = {"study": context.study, "folder": context.folder.resolve(), "home": Path.cwd(), "jobs": jobs}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_work, **arguments), resources),
        param_space=dict(space),
        tune_config=tune_config,
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(context.folder.resolve()),
            failure_config=tune.FailureConfig(max_failures=_RETRIES),
            callbacks=[_completion_callback(on_complete)],
            verbose=0,
        ),
    )
    return tuner.fit()


def _completion_callback(on_complete: Callable[[Mapping[str, Any], Mapping[str, Any]], object]) -> Any:
    """Return a callback for Ray Tune that is called when one of its trials ends."""
    from ray import tune

    def on_trial_complete(self: Any, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        on_complete(trial.config, trial.last_result or {})

    # Ray pickles its callbacks for a restart that is never asked for; this one refers to what cannot be pickled
    unpickled = {"__reduce__": lambda self: (tune.Callback, ())}
    return type("CompletionCallback", (tune.Callback,), {"on_trial_complete": on_trial_complete, **unpickled})()


def _work(
    config: Mapping[str, Any], study: Study, folder: Path, home: Path, jobs: Sequence[tuple[Point, int]] | None
) -> None:
    """Run one of Ray's trials, on whichever machine: a point with one seed, or a proposal with all of them."""
    from ray import tune

    os.chdir(home)  # relative paths in the study mean what they meant there
    context = StudyContext(study, folder, _ignore)
    steps = context.reference.train.max_steps
    if jobs is not None:
        point, seed = jobs[config["job"]]
        result = context.run(context.trial(point, seed), _ignore)
        tune.report({"loss": float(result.losses.mean()), "step": steps})
        return
    point, losses = point_of(changes_of(config)), []
    for place, seed in enumerate(study.config.seeds):
        # one training is enough to see what does badly; the others are for what does well
        callback = _reporting(context, tune.report) if place == 0 else _ignore
        losses.append(float(context.run(context.trial(point, seed), callback).losses.mean()))
    tune.report({"loss": sum(losses) / len(losses), "step": steps})


def _reporting(context: StudyContext, report: Callable[[dict[str, Any]], None]) -> Callable[[object], None]:
    """Return a callback that measures the adapter at the rungs, where Ray may stop it."""
    steps = rungs(context.reference.train.max_steps)

    def callback(event: object) -> None:
        if isinstance(event, StepDone) and event.step in steps:
            report({"loss": context.current_loss(), "step": event.step})

    return callback


def _ignore(event: object) -> None:
    """Ignore an event: Ray reports what there is to report."""
