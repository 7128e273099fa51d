"""The log of a run, read as evidence: steps, skipped steps, scores, counts of pictures, ending."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veneer.doctor.curve import StepLoss
from veneer.doctor.evidence import Effect, Ending, PictureCounts, ValidationScore
from veneer.family.unread import UNREAD_CODES
from veneer.run.log import events_in
from veneer.run.status import RunStatus, status_after

__all__ = ["RunLog", "first_details", "picture_counts", "read_log"]

_MAX_EXAMPLES = 3

Line = Mapping[str, Any]


@dataclass(frozen=True)
class RunLog:
    """Events of a run's log.

    Attributes:
        lines: the events, in the order in which they were recorded.
        exists: whether there is a log at all.
    """

    lines: Sequence[Line]
    exists: bool

    def _named(self, event: str) -> list[Line]:
        return [line for line in self.lines if line["event"] == event]

    @property
    def steps(self) -> list[StepLoss]:
        """Step, loss and gradient norm of each step; NaN for what was not finite."""
        steps = self._named("StepDone")
        return [(line["step"], _number(line["loss"]), _number(line["gradient_norm"])) for line in steps]

    @property
    def skipped(self) -> int:
        """Number of steps that were skipped because loss or gradient was not finite."""
        return len(self._named("StepSkipped")) - self.overflowed

    @property
    def overflowed(self) -> int:
        """Number of steps that were skipped because float16 overflowed."""
        return len([line for line in self._named("StepSkipped") if line["reason"] == "float16_overflow"])

    @property
    def score(self) -> Effect | None:
        """The score at the end of training; None if there is none."""
        scores = self._named("Score")
        return _effect(scores[-1]) if scores else None

    @property
    def validation_scores(self) -> tuple[ValidationScore, ...]:
        """The scores while training."""
        return tuple(ValidationScore(line["step"], _effect(line["held_out"])) for line in self._named("Evaluated"))

    @property
    def pictures(self) -> PictureCounts | None:
        """The counts of pictures that the run recorded; None if it recorded none."""
        surveys = self._named("Surveyed")
        if not surveys:
            return None
        return picture_counts(surveys[-1]["train"], surveys[-1]["held_out"], surveys[-1]["rejected"])

    @property
    def unread_texts(self) -> tuple[str, ...]:
        """What the run told of texts that its base does not see whole, each once."""
        told = [line for line in self._named("Warned") if line["code"] in UNREAD_CODES]
        return tuple(dict.fromkeys(first_details(line["text"], line.get("details", ())) for line in told))

    def ending(self, max_steps: int, *, is_running: bool) -> Ending:
        """Return how the run ended; ``max_steps`` is the number of steps it was to do."""
        status = RunStatus.initial(running=is_running)
        for line in self.lines:
            status = status_after(status, line, max_steps, running=is_running)
        return Ending(status.how, status.step, status.kind, status.text, status.code)


def read_log(path: Path) -> RunLog:
    """Read a log; an empty one where there is no file."""
    return RunLog(list(events_in(path)), path.is_file())


def picture_counts(train: int, held_out: int, rejected: Mapping[str, str]) -> PictureCounts:
    """Return counts with the first few reasons for which pictures were left out."""
    return PictureCounts(train, held_out, dict(list(rejected.items())[:_MAX_EXAMPLES]), len(rejected), duplicates=0)


def first_details(text: str, details: Sequence[str]) -> str:
    """Return a warning with the first things that it concerns, in one line."""
    more = [f"and {len(details) - _MAX_EXAMPLES} more"] if len(details) > _MAX_EXAMPLES else []
    return "; ".join([text, *details[:_MAX_EXAMPLES], *more])


def _number(value: float | None) -> float:
    """Return a logged number: JSON has no NaN, so the log has null."""
    return math.nan if value is None else value


def _effect(line: Line) -> Effect:
    return Effect(line["mean"], line["low"], line["high"], line["base"], line["adapter"], line["pictures"])
