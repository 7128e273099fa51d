"""The protocol of a tracker, and the run that it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["SHEETS", "TrackedRun", "Tracker"]

SHEETS = "samples"
"""Name of the sample sheets in every tracker."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker knows it before its first point.

    Attributes:
        folder: of the run.
        project: that it belongs to.
        name: of the run, the same after a resume.
        settings: its configuration, as JSON has it.
        start_step: steps done by an earlier process.
        last_step: the last one that an earlier process sent to this tracker, which may be later than ``start_step``,
            for it went on after its last checkpoint; -1: none, not even the base's sheet, which is of step 0.
    """

    folder: Path
    project: str
    name: str
    settings: Mapping[str, Any]
    start_step: int = 0
    last_step: int = -1


class Tracker(Protocol):
    """Takes the points of a run's curves. Made from a :class:`TrackedRun`; any of its methods may raise anything."""

    shown_by: str
    """The command or the page that shows them."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take one point of each curve."""

    def picture(self, step: int, path: Path) -> None:
        """Take the sample sheet of a step."""

    def result(self, step: int, values: Mapping[str, float]) -> None:
        """Take the final scores, after the last ``step``."""

    def close(self, failed: bool) -> None:
        """Write what is left; ``failed``: the run did not come to its end."""
