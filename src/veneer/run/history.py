"""What the log of a run tells of the processes that worked on it before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from veneer.run.log import events_in

__all__ = ["Earlier", "look_back"]

_LOSSES = 200
"""What comes before them has no weight left in a smoothed loss: 0.95^200 < 1e-4."""


@dataclass(frozen=True)
class Earlier:
    """Read from a log before it is cut at the checkpoint.

    Attributes:
        losses: of the last steps up to the checkpoint.
        told: the last step that the log tells; after a kill it is later than the checkpoint.
        scored: whether the log tells a held-out score.
        tracked: the last ``Tracked`` of each tracker, by its name.
    """

    losses: tuple[float, ...] = ()
    told: int = 0
    scored: bool = False
    tracked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def look_back(log: Path, step: int) -> Earlier:
    """What a log tells of a run that goes on after ``step``; nothing where there is no log."""
    events = list(events_in(log))
    steps = [event for event in events if event["event"] == "StepDone"]
    losses = [event["loss"] for event in steps if event["step"] <= step]
    return Earlier(
        losses=tuple(math.nan if loss is None else loss for loss in losses[-_LOSSES:]),
        told=max((event["step"] for event in steps), default=0),
        scored=any(event["event"] == "Score" for event in events),
        tracked={event["tracker"]: event for event in events if event["event"] == "Tracked"},
    )
