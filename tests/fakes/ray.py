"""As much of Ray as a study asks for, by its documented interface: trials run one after another in this process.

The real one takes half a minute to start its workers here. Proposals are Optuna's own, as they are with Ray.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import optuna
import pytest

__all__ = ["FakeRay"]


class _Stop(BaseException):
    """The scheduler ends a trial; Ray ends its thread."""


@dataclass
class Result:
    """One trial's."""

    config: Mapping[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None


class OptunaSearch:
    """``ray.tune.search.optuna.OptunaSearch`` with a mapping of distributions."""

    def __init__(
        self,
        space: Mapping[str, Any],
        metric: str,
        mode: str,
        seed: int,
        points_to_evaluate: list[dict[str, Any]] | None = None,
        evaluated_rewards: list[float] | None = None,
    ) -> None:
        assert (metric, mode) == ("loss", "min")
        self._space = dict(space)
        self.study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        for params, value in zip(points_to_evaluate or [], evaluated_rewards or [], strict=True):
            told = {"params": params, "distributions": self._space, "value": value}
            self.study.add_trial(optuna.trial.create_trial(**told))

    def suggest(self) -> optuna.trial.Trial:
        return self.study.ask(fixed_distributions=self._space)


@dataclass
class ASHAScheduler:
    """``ray.tune.schedulers.ASHAScheduler``; the fake stops what the test says."""

    time_attr: str
    max_t: int
    grace_period: int
    reduction_factor: int


@dataclass
class TuneConfig:
    metric: str | None = None
    mode: str | None = None
    search_alg: OptunaSearch | None = None
    scheduler: ASHAScheduler | None = None
    num_samples: int = 1


class FakeRay:
    """Stands for Ray while a test lasts.

    Args:
        patch: of the test.
        stops: whether the scheduler ends a trial, by what it reported last.

    Attributes:
        reports: of all trials, in order.
        needs: resources of a trial, as asked for last.
        running: between ``init`` and ``shutdown``.
        study: Optuna's of the last search.
    """

    def __init__(
        self, patch: pytest.MonkeyPatch, stops: Callable[[Mapping[str, Any]], bool] = lambda told: False, gpus: int = 0
    ) -> None:
        self.reports: list[dict[str, Any]] = []
        self.needs: Mapping[str, float] = {}
        self.config: Any = None
        self.study: Any = None
        self.running = False
        self._stops, self._gpus = stops, gpus
        self._now = Result({})
        self._patch(patch)

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        ray, tune = ModuleType("ray"), ModuleType("ray.tune")
        schedulers, search = ModuleType("ray.tune.schedulers"), ModuleType("ray.tune.search.optuna")
        vars(ray).update(
            init=self._init,
            shutdown=lambda: setattr(self, "running", False),
            is_initialized=lambda: self.running,
            cluster_resources=lambda: {"CPU": 2.0, **({"GPU": self._gpus} if self._gpus else {})},
            tune=tune,
        )
        vars(tune).update(
            Callback=type("Callback", (), {}),
            FailureConfig=SimpleNamespace,
            RunConfig=SimpleNamespace,
            TuneConfig=TuneConfig,
            Tuner=partial(_Tuner, self),
            grid_search=lambda values: {"grid_search": values},
            report=self._report,
            with_parameters=lambda function, **given: partial(function, **given),
            with_resources=self._with_resources,
        )
        vars(schedulers).update(ASHAScheduler=ASHAScheduler)
        vars(search).update(OptunaSearch=OptunaSearch)
        names = {"ray": ray, "ray.tune": tune, "ray.tune.schedulers": schedulers, "ray.tune.search.optuna": search}
        for name, module in {**names, "ray.tune.search": ModuleType("ray.tune.search")}.items():
            patch.setitem(sys.modules, name, module)

    def _init(self, **settings: Any) -> None:
        self.running = True

    def _with_resources(self, function: Any, needs: Mapping[str, float]) -> Any:
        self.needs = needs
        return function

    def _report(self, metrics: dict[str, Any]) -> None:
        self.reports.append(metrics)
        self._now.metrics = metrics
        if self._stops(metrics):
            raise _Stop

    def run(self, function: Callable[[Mapping[str, Any]], None], config: Mapping[str, Any], callbacks: Any) -> Result:
        """One trial, to its end, its fault or its stop."""
        self._now = Result(config)
        try:
            function(config)
        except _Stop:
            pass
        except Exception as fault:
            self._now.error = fault
            return self._now
        for callback in callbacks:
            callback.on_trial_complete(0, [], SimpleNamespace(config=config, last_result=self._now.metrics))
        return self._now


class _Tuner:
    """``ray.tune.Tuner``."""

    def __init__(
        self, ray: FakeRay, function: Any, param_space: Mapping[str, Any], tune_config: TuneConfig, run_config: Any
    ) -> None:
        self._ray, self._function, self._space, self._how = ray, function, param_space, tune_config
        self._run = run_config
        for callback in self._run.callbacks:  # Ray pickles them with all else that a restart would want
            made, *_ = callback.__reduce_ex__(2)
            assert made.__name__ == "Callback", "what a callback holds cannot be pickled"
        ray.config = run_config

    def fit(self) -> list[Result]:
        assert self._ray.running
        return list(self._trials())

    def _trials(self) -> Iterator[Result]:
        proposer = self._how.search_alg
        if proposer is None:
            for values in itertools.product(*(each["grid_search"] for each in self._space.values())):
                yield self._ray.run(self._function, dict(zip(self._space, values, strict=True)), self._run.callbacks)
            return
        self._ray.study = proposer.study
        for _ in range(self._how.num_samples):
            asked = proposer.suggest()
            result = self._ray.run(self._function, asked.params, self._run.callbacks)
            failed = optuna.trial.TrialState.FAIL if result.error else None
            proposer.study.tell(asked, None if failed else result.metrics["loss"], state=failed)
            yield result
