"""The listener that hands a run's figures to its trackers; none of them can stop the run."""

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
from veneer.run.events import SamplesSaved, TrackingStarted
from veneer.run.identity import Identity
from veneer.run.status import RunHistory
from veneer.run.trackers import TRACKERS, Place, Tracker, trackers_of
from veneer.train.events import StepDone, TrainingStarted, Warned
from veneer.train.smoothed_loss import SmoothedLoss

__all__ = ["Tracking", "figures_of"]

_GB = 10**9


class Tracking:
    """Opens the trackers once training starts, tells them what they take, and closes them when left.

    A tracker that fails, because the disk is full or the network down, is told nothing more; one warning says so.

    Args:
        run: whose figures they are.
        earlier: what earlier processes told, where a run is resumed.
        tell: is told of each tracker, and of each that fails.
    """

    def __init__(self, run: Identity, earlier: RunHistory, emit: Callable[[object], None]) -> None:
        self._config, self._earlier, self._emit = run.config, earlier, emit
        self._steps_sha256 = _steps_hash(run)
        self._smooth = SmoothedLoss(earlier.losses)
        self._trackers: dict[str, Tracker] = {}
        self._step = 0

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._each(lambda tracker: tracker.close(error is not None))

    def __call__(self, event: object) -> None:
        """Hand on one event, if it is one that trackers take."""
        if isinstance(event, TrainingStarted):
            self._begin(event)
        elif isinstance(event, StepDone):
            self._step = event.step
            values = figures_of(event, self._smooth.add(event.loss))
            self._each(lambda tracker: tracker.scalars(event.step, values))
        elif isinstance(event, SamplesSaved):
            self._each(lambda tracker: tracker.picture(event.step, event.path))
        elif isinstance(event, Evaluated):
            scores = {**_points("held_out", event.held_out), **_points("trained_on", event.training)}
            self._each(lambda tracker: tracker.scalars(event.step, scores))
        elif isinstance(event, Score):
            self._conclude(event)

    def _begin(self, event: TrainingStarted) -> None:
        self._step = event.start_step
        for name in trackers_of(self._config.tracking):
            place = self._place(name, event.start_step)
            try:
                tracker = TRACKERS[name](place)
            except Exception as fault:  # of somebody else's code, for reasons that only it knows
                self._emit(Warned("tracking.not_started", f"{name} is told nothing of this run: {_in_a_line(fault)}"))
            else:
                self._trackers[name] = tracker
                self._emit(TrackingStarted(name, place.run, self._steps_sha256, tracker.shown_by))

    def _place(self, tracker: str, start: int) -> Place:
        """Where a tracker's points go: into the earlier process' run if this is the same one, else into a new one."""
        config = self._config
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", config.output.dir.resolve().name)[
            :64
        ]  # what any tracker takes as an id
        name = f"{plain}-{secrets.token_hex(4)}"
        settings = config.model_dump(mode="json") | {"veneer": __version__}
        place = Place(config.output.dir, config.tracking.project, name, settings, start)
        if not self._goes_on(tracker):
            return place
        return replace(place, run=self._earlier.trackers[tracker]["run"], told=max(start, self._earlier.last_step))

    def _goes_on(self, tracker: str) -> bool:
        before = self._earlier.trackers.get(tracker)
        return before is not None and before["steps_sha256"] == self._steps_sha256

    def _conclude(self, score: Score) -> None:
        values = _points("result", score)
        # a finished run that is resumed comes to the same again
        again = self._earlier.has_score and self._earlier.last_step == self._step
        self._each(lambda tracker: tracker.result(self._step, values), lambda name: not (again and self._goes_on(name)))

    def _each(self, do: Callable[[Tracker], None], which: Callable[[str], bool] = lambda name: True) -> None:
        for name in [name for name in self._trackers if which(name)]:
            try:
                do(self._trackers[name])
            except Exception as fault:  # as above
                del self._trackers[name]
                self._emit(Warned("tracking.failed", f"{name} is told nothing more of this run: {_in_a_line(fault)}"))


def figures_of(event: StepDone, smoothed: float) -> dict[str, float]:
    """A step's points, by the names of their curves; what is not finite is left out."""
    told: dict[str, float | None] = {
        "loss/step": event.loss,
        "loss/smoothed": smoothed,
        "loss/prior": event.prior_loss,
        **{f"rate/{network}": rate for network, rate in event.rates.items()},
        "gradient/norm": event.gradient_norm,
        **_memory(),
    }
    return {name: value for name, value in told.items() if value is not None and math.isfinite(value)}


def _points(group: str, score: Score) -> dict[str, float]:
    ends = {"low": score.low, "high": score.high}
    told = {"base": score.base, "adapter": score.adapter, "difference": score.mean, **ends}
    return {f"{group}/{name}": value for name, value in told.items() if math.isfinite(value)}


def _memory() -> Mapping[str, float | None]:
    usage = read_memory_usage()
    return {"memory/gb": usage.current / _GB, "memory/peak_gb": usage.peak / _GB}


def _steps_hash(run: Identity) -> str:
    """The same for a run that is resumed, also if it may do now what leaves the steps that are done as they are."""
    settings = training_settings(run.config)
    del settings["train.on_nonfinite"]
    if run.config.train.lr_scheduler == "constant":
        del settings["train.max_steps"]
    text = json.dumps([settings, dict(run.hashes)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _in_a_line(fault: Exception) -> str:
    return " ".join(str(fault).split()) or type(fault).__name__
