"""The log of a run, summed up as it is read: of a million steps no more is kept than a page can show."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from veneer.evaluate.results import Evaluated
from veneer.report.content import CurvePoint, Ending, LossCurve, TrainingSummary
from veneer.run.log import events_in
from veneer.run.status import RunStatus, status_after
from veneer.serialise import from_data
from veneer.train.events import StepSkipped
from veneer.train.smoothed_loss import SmoothedLoss

__all__ = ["summarize_log"]

_MAX_POINTS = 400
_MAX_WARNINGS = 20
_TIMED_STEPS = 2_000
"""Number of last steps whose time is taken."""

Line = Mapping[str, Any]


class _LogSummary:
    """Sums up a log line by line.

    Args:
        max_steps: number of steps that the run was to do.
        running: whether a process works on the run now.
    """

    def __init__(self, max_steps: int, running: bool) -> None:
        self._max_steps, self._running = max_steps, running
        self._status = RunStatus.initial(running=running)
        self._curve = _CurveBuilder(max(1, math.ceil(max_steps / _MAX_POINTS)))
        self._step_times = _StepTimes()
        self._warnings = _Warnings()
        self._scores: dict[int, Evaluated] = {}
        self._memory: int | None = None

    def add(self, line: Line) -> None:
        """Take in one event; one of another version that lacks a field is passed over."""
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            self._status = status_after(self._status, line, self._max_steps, running=self._running)
            self._take(str(line["event"]), line)

    def _take(self, event: str, line: Line) -> None:
        if event == "StepDone":
            self._curve.add(int(line["step"]), math.nan if line["loss"] is None else float(line["loss"]))
            self._step_times.add(int(line["step"]), float(line["seconds"]))
        elif event == "Evaluated":
            self._scores[line["step"]] = from_data(Evaluated, line)
        elif event == "Warned":
            self._warnings.add("; ".join([line["text"], *line.get("details", ())]))
        elif event == "StepSkipped":
            self._warnings.add(str(StepSkipped(line["step"], line["reason"], line["text"])))
        elif event == "MemoryMeasured":
            self._memory = line["peak"]

    def result(self) -> TrainingSummary:
        """Return the summary, once the last line is in."""
        status = self._status
        return TrainingSummary(
            ending=Ending(status.how, status.step, self._max_steps, status.text),
            curve=self._curve.result(),
            scores=tuple(self._scores[step] for step in sorted(self._scores)),
            warnings=self._warnings.result(),
            more_warnings=self._warnings.more,
            step_seconds=self._step_times.result(),
            memory_bytes=self._memory,
        )


class _Warnings:
    """Counts warnings by their text.

    Attributes:
        more: number of warnings beyond the first different ones.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.more = 0

    def add(self, text: str) -> None:
        if text in self._counts or len(self._counts) < _MAX_WARNINGS:
            self._counts[text] += 1
        else:
            self.more += 1

    def result(self) -> tuple[str, ...]:
        return tuple(text if count == 1 else f"{text} ({count:,} times)" for text, count in self._counts.items())


class _StepTimes:
    """Takes the time between steps that follow one another."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_TIMED_STEPS)
        self._before: tuple[int, float] | None = None

    def add(self, step: int, seconds: float) -> None:
        if self._before is not None and self._before[0] == step - 1 and seconds > self._before[1]:
            self._seconds.append(seconds - self._before[1])
        self._before = step, seconds

    def result(self) -> float | None:
        return round(median(self._seconds), 3) if self._seconds else None


class _CurveBuilder:
    """Joins steps to the points of a loss curve.

    Args:
        width: number of steps in a point.
    """

    def __init__(self, width: int) -> None:
        self._width, self._smoothing, self._skipped = width, SmoothedLoss(), 0
        self._points: list[CurvePoint] = []
        self._losses: list[float] = []
        self._last, self._smoothed = 0, math.nan

    def add(self, step: int, loss: float) -> None:
        if self._last and (step - 1) // self._width != (self._last - 1) // self._width:
            self._end_point()
        self._last, self._smoothed = step, self._smoothing.add(loss)
        if math.isfinite(loss):
            self._losses.append(loss)
        else:
            self._skipped += 1

    def _end_point(self) -> None:
        losses = self._losses
        mean = math.fsum(losses) / len(losses) if losses else None
        smoothed = self._smoothed if math.isfinite(self._smoothed) else None
        lowest, highest = min(losses, default=None), max(losses, default=None)
        self._points.append(CurvePoint(self._last, mean, lowest, highest, smoothed))
        self._losses = []

    def result(self) -> LossCurve | None:
        if not self._last:
            return None
        self._end_point()
        return LossCurve(tuple(self._points), self._width, self._skipped)


def summarize_log(path: Path, max_steps: int, *, running: bool = False) -> TrainingSummary | None:
    """Return a log summed up; None where there is no file.

    Args:
        path: file of the log.
        max_steps: number of steps that the run was to do.
        running: whether a process works on the run now.
    """
    if not path.is_file():
        return None
    summary = _LogSummary(max_steps, running)
    for line in events_in(path):
        summary.add(line)
    return summary.result()
