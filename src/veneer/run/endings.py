"""How a run ended, by its log: what report and doctor both tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

__all__ = ["Ended", "ended_after"]

How = Literal["finished", "stopped early", "stopped", "failed", "cut off", "running"]


@dataclass(frozen=True)
class Ended:
    """How far a run came.

    Attributes:
        how: ``cut off`` means that the log ends in the middle and nobody is at work on it.
        step: the last one done.
        kind: class of the fault that ended it; empty without one.
        text: what the fault says.
    """

    how: How
    step: int = 0
    kind: str = ""
    text: str = ""

    @classmethod
    def unknown(cls, *, running: bool) -> Ended:
        """Of a log that has not told yet."""
        return cls("running" if running else "cut off")


def ended_after(ending: Ended, line: Mapping[str, Any], steps: int, *, running: bool) -> Ended:
    """How a log ends that ends with this line.

    A run that is resumed where its patience had run out ends at once, and does not say again that it ended early: it
    finishes with steps left.

    Args:
        ending: by the lines before.
        line: an event.
        steps: that the run was asked for.
        running: whether it is at work now.

    Raises:
        KeyError: the event lacks what it should have.
    """
    event = line["event"]
    if event == "Resumed":  # whoever goes on with a run that was stopped has yet to end it
        return replace(Ended.unknown(running=running), step=int(line["step"]))
    if event == "StepDone":
        return replace(ending, step=int(line["step"]))
    if event == "EarlyStopped":
        return replace(ending, how="stopped early")
    if event == "Finished":
        return replace(ending, how="finished" if int(line["step"]) >= steps else "stopped early")
    if event == "Stopped":
        return replace(ending, how="stopped")
    if event == "Failed":
        return replace(ending, how="failed", kind=str(line["kind"]), text=str(line["text"]))
    return ending
