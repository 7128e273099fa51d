"""A study's trials on a Ray cluster: Ray Tune hands them out, and of a search stops early what does badly.

Trials write into the study's folder, as they do on one machine, so the machines must share it: what is done is known
there, a trial whose machine went away goes on from its checkpoint, and the same call again does the rest.

Of a grid every trial is trained to its end, for the table compares ends. Of a search, ASHA (Li et al. 2020) compares
proposals by their held-out loss after a ninth and a third of the steps, and stops all but the best third each time.
That is no failure: it is noted in the trial's folder, and the same call again takes it for done.
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
from veneer.study.results import StudyResults, failure_of
from veneer.study.search import changes_of, params_of, space_of
from veneer.study.statistics import Failure
from veneer.study.trial import StudyContext, Trial
from veneer.train.events import StepDone

__all__ = ["need_ray", "run_on_ray", "rungs"]

_FACTOR = 3
_TRIES = 1  # once more, where the machine went away


def rungs(steps: int) -> tuple[int, ...]:
    """The steps after which a search's proposals are compared before their end: a ninth and a third of all."""
    first = max(1, steps // _FACTOR**2)
    return tuple(step for step in (first, first * _FACTOR) if step < steps)


def run_on_ray(context: StudyContext, results: StudyResults) -> None:
    """Do what is not done yet of a study on a Ray cluster, or on this machine's cores if there is none.

    Args:
        context: of the study.
        results: takes in each trial that ends.

    Raises:
        UserError: Ray is not installed.
    """
    need_ray()
    import ray

    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        (_search if context.study.config.search is not None else _run_all)(context, results)
    finally:
        if ours:
            ray.shutdown()


def need_ray() -> None:
    """See that Ray is there.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its own tables, which verbose=0 does not silence
    # it would take what Ctrl-C cut for what its scheduler stopped
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    try:
        importlib.import_module("ray")
    except ImportError:
        raise UserError("is not installed", where="--on ray", remedy="pip install 'veneer[ray]'") from None


def _run_all(context: StudyContext, results: StudyResults) -> None:
    from ray import tune

    points = budget_points(context)
    results.expect(points)
    trials = [context.trial(point, seed) for seed in context.study.config.seeds for point in points]
    left = [trial for trial in trials if not _enter_done(context, results, trial, known=True)]
    if not left:
        return
    jobs = [(trial.point, trial.run.config.seed) for trial in left]
    space = {"job": tune.grid_search(list(range(len(left))))}
    fitted = _fit(
        context, space, jobs, tune.TuneConfig(), lambda config, _: _enter_done(context, results, left[config["job"]])
    )
    for result in fitted:
        trial = left[result.config["job"]]
        if not _enter_done(context, results, trial):
            results.add_failure(failure_of(trial, result.error or RuntimeError("Ray tells no reason")))


def _enter_done(context: StudyContext, results: StudyResults, trial: Trial, *, known: bool = False) -> bool:
    """Enter a trial, unless it is entered, if it is done; whether it is."""
    if (trial.point.name, trial.run.config.seed) in results.outcomes:
        return True
    outcome = context.outcome(trial)
    if outcome is not None:
        results.add(outcome, known=known)
    return outcome is not None


def _search(context: StudyContext, results: StudyResults) -> None:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    search, steps = context.study.config.search, context.reference.train.max_steps
    assert search is not None
    space, known = space_of(search), _known(context, results)
    if len(known) >= search.trials:
        return
    told = {"points_to_evaluate": [params for params, _ in known], "evaluated_rewards": [loss for _, loss in known]}
    # with the seed of before it would propose what it proposed before
    seed = key(context.reference.seed, "search", len(known)) % 2**32
    proposer = OptunaSearch(space, metric="loss", mode="min", seed=seed, **(told if known else {}))
    marks = rungs(steps)
    first = marks[0] if marks else steps
    asha = ASHAScheduler(time_attr="step", max_t=steps, grace_period=first, reduction_factor=_FACTOR)
    how = tune.TuneConfig(
        metric="loss", mode="min", search_alg=proposer, scheduler=asha, num_samples=search.trials - len(known)
    )

    def enter(config: Mapping[str, Any], told: Mapping[str, Any]) -> None:
        _enter_ended(context, results, _trials(context, point_of(changes_of(config))), told)

    for result in _fit(context, {}, None, how, enter):
        _close(context, results, point_of(changes_of(result.config)), result)


def _trials(context: StudyContext, point: Point) -> list[Trial]:
    """One a seed; none where the point cannot be trained."""
    try:
        return [context.trial(point, seed) for seed in context.study.config.seeds]
    except UserError:
        return []


def _close(context: StudyContext, results: StudyResults, point: Point, result: Any) -> None:
    """Enter a proposal that Ray is done with: its trials, or why there are none."""
    trials = _trials(context, point)
    left = _left(context, results, trials)
    if not trials:
        results.add_failure(Failure(point.name, context.study.config.seeds[0], _last_line(result.error)))
    elif left and result.error is not None:
        results.add_failure(failure_of(left[0], result.error))
    elif left and (point.name, left[0].run.config.seed) not in results.stopped:
        _enter_ended(context, results, trials, result.metrics)


def _enter_ended(
    context: StudyContext, results: StudyResults, trials: Sequence[Trial], told: Mapping[str, Any]
) -> None:
    """Enter a proposal that ended without a fault; what is not done of it the scheduler stopped at its last report."""
    left = _left(context, results, trials)
    if left and told:
        results.add_stopped(context.stop(left[0], told["step"], told["loss"]))


def _left(context: StudyContext, results: StudyResults, trials: Sequence[Trial], *, known: bool = False) -> list[Trial]:
    """Those that are not done; the others are entered."""
    return [trial for trial in trials if not _enter_done(context, results, trial, known=known)]


def _last_line(fault: BaseException | None) -> str:
    """Ray puts the worker's own words at the end of all of its trace."""
    lines = str(fault or "").strip().splitlines()
    return lines[-1].strip() if lines else "Ray tells no reason"


def _known(context: StudyContext, results: StudyResults) -> list[tuple[dict[str, Any], float]]:
    """Proposals of earlier sessions that are done with all seeds, or stopped, and their losses; they are entered."""
    search = context.study.config.search
    assert search is not None
    space, found = space_of(search), []
    for changes in context.tried():
        params, trials = params_of(changes, space), _trials(context, point_of(changes))
        loss = _known_loss(context, results, trials) if params is not None and trials else None
        if params is not None and loss is not None:
            found.append((params, loss))
    return found


def _known_loss(context: StudyContext, results: StudyResults, trials: Sequence[Trial]) -> float | None:
    """What the sampler learned of a proposal: the mean loss of its seeds, or the loss that it was stopped at."""
    left = _left(context, results, trials, known=True)
    if not left:
        done = [results.outcomes[trial.point.name, trial.run.config.seed] for trial in trials]
        return sum(float(outcome.losses.mean()) for outcome in done) / len(done)
    stopped = context.stopped(left[0])
    if stopped is None:
        return None
    results.add_stopped(stopped, known=True)
    return stopped.loss


def _fit(
    context: StudyContext,
    space: Mapping[str, Any],
    jobs: Sequence[tuple[Point, int]] | None,
    how: Any,
    enter: Callable[[Mapping[str, Any], Mapping[str, Any]], object],
) -> Any:
    """Let Ray Tune do its trials; ``enter`` is called with the configuration and the last report of each that ended."""
    import ray
    from ray import tune

    def on_trial_complete(self: Any, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        enter(trial.config, trial.last_result or {})

    # Ray writes its callbacks down for a restart that is never asked for; this one holds what cannot be written
    gone = {"__reduce__": lambda self: (tune.Callback, ())}
    live = type("Live", (tune.Callback,), {"on_trial_complete": on_trial_complete, **gone})

    needs = {"cpu": 1, "gpu": 1} if ray.cluster_resources().get("GPU") else {"cpu": 1}
    given = {"study": context.study, "folder": context.folder.resolve(), "home": Path.cwd(), "jobs": jobs}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_work, **given), needs),
        param_space=dict(space),
        tune_config=how,
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(context.folder.resolve()),
            failure_config=tune.FailureConfig(max_failures=_TRIES),
            callbacks=[live()],
            verbose=0,
        ),
    )
    return tuner.fit()


def _work(
    config: Mapping[str, Any], study: Study, folder: Path, home: Path, jobs: Sequence[tuple[Point, int]] | None
) -> None:
    """One of Ray's trials: a point with one seed, or a proposal with all of them; on whichever machine."""
    from ray import tune

    os.chdir(home)  # relative paths in the study mean what they meant there
    context = StudyContext(study, folder, _ignore)
    if jobs is not None:
        point, seed = jobs[config["job"]]
        outcome = context.run(context.trial(point, seed), _ignore)
        tune.report({"loss": float(outcome.losses.mean()), "step": context.reference.train.max_steps})
        return
    point, losses = point_of(changes_of(config)), []
    for place, seed in enumerate(study.config.seeds):
        # one training is enough to see what does badly; the others are for what does well
        callback = _reporting(context, tune.report) if place == 0 else _ignore
        losses.append(float(context.run(context.trial(point, seed), callback).losses.mean()))
    tune.report({"loss": sum(losses) / len(losses), "step": context.reference.train.max_steps})


def _reporting(context: StudyContext, report: Callable[[dict[str, Any]], None]) -> Callable[[object], None]:
    """A listener that measures the adapter at the rungs, where Ray may stop it."""
    marks = rungs(context.reference.train.max_steps)

    def callback(event: object) -> None:
        if isinstance(event, StepDone) and event.step in marks:
            report({"loss": context.measure_now(), "step": event.step})

    return callback


def _ignore(event: object) -> None:
    """Ray tells what there is to tell."""
