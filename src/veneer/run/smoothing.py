"""The loss as a person can read it."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["Smooth"]

_MEMORY = 0.95  # about the last twenty steps


class Smooth:
    """An exponential mean without a bias towards its start (Kingma and Ba 2015, section 3).

    Args:
        before: losses of earlier steps, so that a run that goes on is smoothed as if nobody had stopped it.
    """

    def __init__(self, before: Iterable[float] = ()) -> None:
        self._sum = self._weight = 0.0
        for loss in before:
            self.add(loss)

    def add(self, loss: float) -> float:
        """Take in a step's loss, unless the step was skipped and it is not finite; return the mean."""
        if math.isfinite(loss):
            self._sum = _MEMORY * self._sum + (1 - _MEMORY) * loss
            self._weight = _MEMORY * self._weight + (1 - _MEMORY)
        return self._sum / self._weight if self._weight else math.nan
