"""The training loss without the noise of single steps, for the bar, the trackers and the report."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["SmoothedLoss"]

_DECAY = 0.95  # about the last twenty steps


class SmoothedLoss:
    """An exponential moving average without a bias towards its start (Kingma and Ba 2015, section 3).

    Args:
        earlier_losses: of the steps before, so that a resumed run is smoothed as if nobody had stopped it.
    """

    def __init__(self, earlier_losses: Iterable[float] = ()) -> None:
        self._sum = self._weight = 0.0
        for loss in earlier_losses:
            self.add(loss)

    def add(self, loss: float) -> float:
        """Take in a step's loss, unless it is not finite because the step was skipped; return the average."""
        if math.isfinite(loss):
            self._sum = _DECAY * self._sum + (1 - _DECAY) * loss
            self._weight = _DECAY * self._weight + (1 - _DECAY)
        return self._sum / self._weight if self._weight else math.nan
