"""Early stopping: which of a run's adapters is the best on held-out pictures, and when to stop waiting for a better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from veneer.adapter.protocol import AdapterWeights
from veneer.adapter.registry import from_tensors, to_tensors
from veneer.evaluate.comparison import Losses, paired_difference
from veneer.evaluate.results import Score
from veneer.rng import key

__all__ = ["BestAdapter", "EarlyStopping"]

_PREFIX = "early_stopping."
_BEST = f"{_PREFIX}best."


@dataclass(frozen=True)
class BestAdapter:
    """The best adapter so far.

    Attributes:
        step: after which it was measured.
        losses: its held-out losses (pictures, draws).
        weights: the adapter.
    """

    step: int
    losses: Losses
    weights: AdapterWeights = field(repr=False)


class EarlyStopping:
    """Keeps the adapter with the lowest mean held-out loss, the earliest of equal ones, and counts how long ago it was.

    The noise and the times are the same each time, so the losses of two steps are paired: much of what makes one of
    them high makes the other high too.

    Args:
        patience: measurements in a row without a better one after which to stop; 0: never.
        measurement: names all that the losses depend on beside the adapter; others cannot be compared with them.

    Attributes:
        best: so far; None before the first measurement.
        wait: measurements since then.
    """

    def __init__(self, patience: int, measurement: str) -> None:
        self._patience, self._measurement = patience, key("selection", measurement)
        self.best: BestAdapter | None = None
        self.wait = 0

    def observe(self, step: int, losses: Losses, weights: AdapterWeights) -> bool:
        """Add a measurement; return whether it is the best so far."""
        if self.best is not None and losses.mean() >= self.best.losses.mean():
            self.wait += 1
            return False
        self.best, self.wait = BestAdapter(step, losses, weights), 0
        return True

    def observe_failure(self) -> None:
        """Add a measurement that failed because a loss was not finite."""
        self.wait += 1

    @property
    def should_stop(self) -> bool:
        """Whether the patience has run out."""
        return 0 < self._patience <= self.wait

    def difference_to_best(self, losses: Losses, seed: int) -> Score:
        """Return the score of losses against the best ones."""
        assert self.best is not None
        return paired_difference(losses, self.best.losses, seed)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that ``load_state_dict`` needs, for safetensors; empty before the first measurement."""
        if self.best is None:
            return {}
        numbers = {"step": self.best.step, "wait": self.wait, "measurement": self._measurement}
        state = {f"{_PREFIX}{name}": torch.tensor(number) for name, number in numbers.items()}
        state[f"{_PREFIX}losses"] = torch.from_numpy(self.best.losses.copy())
        state |= {f"{_BEST}{name}": tensor for name, tensor in to_tensors(self.best.weights).items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> bool:
        """Restore a state; return False, and change nothing, if its losses are of another measurement."""
        if f"{_PREFIX}step" not in state:
            return True
        if int(state[f"{_PREFIX}measurement"]) != self._measurement:
            return False
        losses = state[f"{_PREFIX}losses"].numpy().copy()
        best = {name.removeprefix(_BEST): tensor for name, tensor in state.items() if name.startswith(_BEST)}
        self.best = BestAdapter(int(state[f"{_PREFIX}step"]), losses, from_tensors(best))
        self.wait = int(state[f"{_PREFIX}wait"])
        return True
