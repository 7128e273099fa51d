"""A run's log, summed up as it is read: of a million steps no more is kept than a page can show."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from veneer.evaluate.results import Evaluated
from veneer.report.content import Course, Curve, Ending, Point
from veneer.run.log import events_in
from veneer.run.status import RunStatus, status_after
from veneer.serialise import from_data
from veneer.train.events import StepSkipped
from veneer.train.smoothed_loss import SmoothedLoss

__all__ = ["read_log"]

_POINTS = 400
"""Of a curve, at most."""
_WARNINGS = 20
_GAPS = 2_000
"""Steps whose time is taken, the last ones."""

Line = Mapping[str, Any]


class _Reader:
    """What a log tells, added line by line.

    Args:
        steps: that the run was asked for.
        running: whether it is at work now.
    """

    def __init__(self, steps: int, running: bool) -> None:
        self._steps, self._running = steps, running
        self._ending = RunStatus.initial(running=running)
        self._curve = _CurveMaker(max(1, math.ceil(steps / _POINTS)))
        self._scores: dict[int, Evaluated] = {}
        self._warnings: Counter[str] = Counter()
        self._more = 0
        self._gaps: deque[float] = deque(maxlen=_GAPS)
        self._before: tuple[int, float] | None = None
        self._memory: int | None = None

    def add(self, line: Line) -> None:
        """Take in one event; one of another version that lacks what is wanted is passed over."""
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            self._ending = status_after(self._ending, line, self._steps, running=self._running)
            self._take(str(line["event"]), line)

    def _take(self, event: str, line: Line) -> None:
        if event == "StepDone":
            self._step(line)
        elif event == "Evaluated":
            self._scores[line["step"]] = from_data(Evaluated, line)
        elif event == "Warned":
            self._warn(line["text"])
        elif event == "StepSkipped":
            self._warn(str(StepSkipped(line["step"], line["reason"], line["text"])))
        elif event == "MemoryMeasured":
            self._memory = line["peak"]

    def _warn(self, text: str) -> None:
        if text in self._warnings or len(self._warnings) < _WARNINGS:
            self._warnings[text] += 1
        else:
            self._more += 1

    def _step(self, line: Line) -> None:
        step, seconds = int(line["step"]), float(line["seconds"])
        self._curve.add(step, math.nan if line["loss"] is None else float(line["loss"]))
        if self._before is not None and self._before[0] == step - 1 and seconds > self._before[1]:
            self._gaps.append(seconds - self._before[1])
        self._before = step, seconds

    def course(self) -> Course:
        """All of it, once the last line is in."""
        warnings = [text if count == 1 else f"{text} ({count:,} times)" for text, count in self._warnings.items()]
        return Course(
            ending=Ending(self._ending.how, self._ending.step, self._steps, self._ending.text),
            curve=self._curve.curve(),
            scores=tuple(self._scores[step] for step in sorted(self._scores)),
            warnings=tuple(warnings),
            more_warnings=self._more,
            step_seconds=round(median(self._gaps), 3) if self._gaps else None,
            memory_bytes=self._memory,
        )


class _CurveMaker:
    """Joins steps to the points of a curve.

    Args:
        width: steps a point.
    """

    def __init__(self, width: int) -> None:
        self._width, self._smooth, self._skipped = width, SmoothedLoss(), 0
        self._points: list[Point] = []
        self._losses: list[float] = []
        self._last, self._smoothed = 0, math.nan

    def add(self, step: int, loss: float) -> None:
        if self._last and (step - 1) // self._width != (self._last - 1) // self._width:
            self._close()
        self._last, self._smoothed = step, self._smooth.add(loss)
        if math.isfinite(loss):
            self._losses.append(loss)
        else:
            self._skipped += 1

    def _close(self) -> None:
        losses = self._losses
        mean = math.fsum(losses) / len(losses) if losses else None
        smoothed = self._smoothed if math.isfinite(self._smoothed) else None
        self._points.append(Point(self._last, mean, min(losses, default=None), max(losses, default=None), smoothed))
        self._losses = []

    def curve(self) -> Curve | None:
        if not self._last:
            return None
        self._close()
        return Curve(tuple(self._points), self._width, self._skipped)


def read_log(path: Path, steps: int, *, running: bool = False) -> Course | None:
    """Sum up a log; None where there is none.

    Args:
        path: of the log.
        steps: that the run was asked for.
        running: whether it is at work now.
    """
    if not path.is_file():
        return None
    reader = _Reader(steps, running)
    for line in events_in(path):
        reader.add(line)
    return reader.course()
