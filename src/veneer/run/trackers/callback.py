"""The callback that sends a run's events to its trackers; none of them can stop the run."""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType

from veneer import __version__
from veneer.config.fingerprint import training_settings
from veneer.engine.memory_usage import read_memory_usage
from veneer.evaluate.results import Evaluated, Score
from veneer.run.events import Callback, SamplesSaved, TrackingStarted
from veneer.run.identity import Identity
from veneer.run.status import RunHistory
from veneer.run.trackers.protocol import TrackedRun, Tracker
from veneer.run.trackers.registry import TRACKERS, trackers_of
from veneer.train.events import StepDone, TrainingStarted, Warned
from veneer.train.smoothed_loss import SmoothedLoss

__all__ = ["TrackerCallback", "step_values"]

_GB = 10**9


class TrackerCallback:
    """Opens the trackers once training starts, sends them what they take, and closes them when left.

    A tracker that fails, because the disk is full or the network down, gets nothing more; one warning says so.

    Args:
        run: that is tracked.
        history: what earlier processes did of it.
        emit: is called with ``TrackingStarted`` of each tracker, and with a warning of each that fails.
    """

    def __init__(self, run: Identity, history: RunHistory, emit: Callback) -> None:
        self._config, self._history, self._emit = run.config, history, emit
        self._steps_sha256 = _steps_hash(run)
        self._smoothed = SmoothedLoss(history.losses)
        self._trackers: dict[str, Tracker] = {}
        self._step = 0

    def __enter__(self) -> TrackerCallback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._send(lambda tracker: tracker.close(error is not None))

    def __call__(self, event: object) -> None:
        """Send one event on, if it is one that trackers take."""
        if isinstance(event, TrainingStarted):
            self._start(event.start_step)
        elif isinstance(event, StepDone):
            self._step = event.step
            values = step_values(event, self._smoothed.add(event.loss))
            self._send(lambda tracker: tracker.scalars(event.step, values))
        elif isinstance(event, SamplesSaved):
            self._send(lambda tracker: tracker.picture(event.step, event.path))
        elif isinstance(event, Evaluated):
            scores = {**_score_values("held_out", event.held_out), **_score_values("trained_on", event.training)}
            self._send(lambda tracker: tracker.scalars(event.step, scores))
        elif isinstance(event, Score):
            self._send_result(event)

    def _start(self, start_step: int) -> None:
        self._step = start_step
        for name in trackers_of(self._config.tracking):
            run = self._tracked_run(name, start_step)
            try:
                tracker = TRACKERS[name](run)
            except Exception as fault:  # of somebody else's code, for reasons that only it knows
                text = f"{name} is told nothing of this run: {_in_a_line(fault)}"
                self._emit(Warned("tracking.not_started", text))
            else:
                self._trackers[name] = tracker
                self._emit(TrackingStarted(name, run.name, self._steps_sha256, tracker.shown_by))

    def _tracked_run(self, tracker: str, start_step: int) -> TrackedRun:
        """Return where a tracker's points go: on in the earlier process's run if it is the same, else in a new one."""
        config = self._config
        folder = re.sub(r"[^A-Za-z0-9_.-]+", "-", config.output.dir.resolve().name)
        name = f"{folder[:64]}-{secrets.token_hex(4)}"  # what any tracker takes as an id
        settings = config.model_dump(mode="json") | {"veneer": __version__}
        run = TrackedRun(config.output.dir, config.tracking.project, name, settings, start_step)
        if not self._goes_on(tracker):
            return run
        earlier = self._history.trackers[tracker]
        return replace(run, name=earlier["run"], last_step=max(start_step, self._history.last_step))

    def _goes_on(self, tracker: str) -> bool:
        earlier = self._history.trackers.get(tracker)
        return earlier is not None and earlier["steps_sha256"] == self._steps_sha256

    def _send_result(self, score: Score) -> None:
        values = _score_values("result", score)
        # a finished run that is resumed comes to the same again
        again = self._history.has_score and self._history.last_step == self._step
        for name in list(self._trackers):
            if not (again and self._goes_on(name)):
                self._send_to(name, lambda tracker: tracker.result(self._step, values))

    def _send(self, message: Callable[[Tracker], None]) -> None:
        for name in list(self._trackers):
            self._send_to(name, message)

    def _send_to(self, name: str, message: Callable[[Tracker], None]) -> None:
        try:
            message(self._trackers[name])
        except Exception as fault:  # of somebody else's code, for reasons that only it knows
            del self._trackers[name]
            self._emit(Warned("tracking.failed", f"{name} is told nothing more of this run: {_in_a_line(fault)}"))


def step_values(event: StepDone, smoothed: float) -> dict[str, float]:
    """Return a step's points by the names of their curves; what is not finite is left out."""
    values: dict[str, float | None] = {
        "loss/step": event.loss,
        "loss/smoothed": smoothed,
        "loss/prior": event.prior_loss,
        **{f"rate/{network}": rate for network, rate in event.rates.items()},
        "gradient/norm": event.gradient_norm,
        **_memory_values(),
    }
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def _score_values(group: str, score: Score) -> dict[str, float]:
    ends = {"low": score.low, "high": score.high}
    values = {"base": score.base, "adapter": score.adapter, "difference": score.mean, **ends}
    return {f"{group}/{name}": value for name, value in values.items() if math.isfinite(value)}


def _memory_values() -> Mapping[str, float]:
    usage = read_memory_usage()
    return {"memory/gb": usage.current / _GB, "memory/peak_gb": usage.peak / _GB}


def _steps_hash(run: Identity) -> str:
    """Return a hash that stays when a run is resumed, also with what leaves the steps that are done as they are."""
    settings = training_settings(run.config)
    del settings["train.on_nonfinite"]
    if run.config.train.lr_scheduler == "constant":
        del settings["train.max_steps"]
    text = json.dumps([settings, dict(run.hashes)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _in_a_line(fault: Exception) -> str:
    return " ".join(str(fault).split()) or type(fault).__name__
