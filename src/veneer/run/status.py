"""The state of a run by its folder: how far it came, how it ended, and whether it is at work now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from veneer.errors import UserError
from veneer.run.lock import LOCK, locked
from veneer.run.log import events_in

__all__ = ["RunHistory", "RunStatus", "is_running", "read_history", "status_after"]

Outcome = Literal["finished", "stopped early", "stopped", "failed", "cut off", "running"]

_LOSSES = 200
"""What comes before them has no weight left in a smoothed loss: 0.95^200 < 1e-4."""


@dataclass(frozen=True)
class RunStatus:
    """How far a run came and how it ended.

    Attributes:
        how: ``cut off`` means that the log ends in the middle and no process is at work on it.
        step: the last one done.
        kind: class of the fault that ended it; empty without one.
        text: what the fault says.
        code: its kind, for programs, as of :class:`veneer.run.events.Failed`.
    """

    how: Outcome
    step: int = 0
    kind: str = ""
    text: str = ""
    code: str = ""

    @classmethod
    def initial(cls, *, running: bool) -> RunStatus:
        """Return the status of a run whose log is still empty."""
        return cls("running" if running else "cut off")


def status_after(status: RunStatus, line: Mapping[str, Any], steps: int, *, running: bool) -> RunStatus:
    """Return the status of a run after one more line of its log.

    A run that is resumed where its patience had run out ends at once, and does not say again that it ended early: it
    finishes with steps left.

    Args:
        status: after the lines before.
        line: an event.
        steps: that the run was asked for.
        running: whether it is at work now.

    Raises:
        KeyError: the event lacks what it should have.
    """
    event = line["event"]
    if event == "Resumed":  # whoever goes on with a run that was stopped has yet to end it
        return replace(RunStatus.initial(running=running), step=int(line["step"]))
    if event == "StepDone":
        return replace(status, step=int(line["step"]))
    if event == "EarlyStopped":
        return replace(status, how="stopped early")
    if event == "Finished":
        return replace(status, how="finished" if int(line["step"]) >= steps else "stopped early")
    if event == "Stopped":
        return replace(status, how="stopped")
    if event == "Failed":
        kind, text, code = str(line["kind"]), str(line["text"]), str(line.get("code", ""))
        return replace(status, how="failed", kind=kind, text=text, code=code)
    return status


def is_running(folder: Path) -> bool:
    """Return whether a run works in a folder now; nothing is written to a folder that no run was ever in."""
    if not (folder / LOCK).exists():
        return False
    try:
        with locked(folder):
            return False
    except UserError:
        return True


@dataclass(frozen=True)
class RunHistory:
    """The work of earlier processes on a run, read from its log before it is cut at the checkpoint.

    Attributes:
        losses: of the last steps up to the checkpoint.
        last_step: the last one that is logged; after a kill it is later than the checkpoint.
        has_score: whether a held-out score is logged.
        trackers: the last ``TrackingStarted`` of each tracker, by its name.
    """

    losses: tuple[float, ...] = ()
    last_step: int = 0
    has_score: bool = False
    trackers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_history(log: Path, step: int) -> RunHistory:
    """Return the history in the log of a run that goes on after ``step``; an empty one where there is no log."""
    events = list(events_in(log))
    steps = [event for event in events if event["event"] == "StepDone"]
    losses = [event["loss"] for event in steps if event["step"] <= step]
    return RunHistory(
        losses=tuple(math.nan if loss is None else loss for loss in losses[-_LOSSES:]),
        last_step=max((event["step"] for event in steps), default=0),
        has_score=any(event["event"] == "Score" for event in events),
        trackers={event["tracker"]: event for event in events if event["event"] == "TrackingStarted"},
    )
