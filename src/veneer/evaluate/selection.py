"""Which of a run's adapters is the best on held-out pictures, and whether there is hope for a better one."""

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

__all__ = ["Best", "Selection"]

_KIND = "selection."
_BEST = f"{_KIND}best."


@dataclass(frozen=True)
class Best:
    """The best adapter so far.

    Attributes:
        step: after which it was that.
        losses: its held-out losses (pictures, draws).
        weights: the adapter.
    """

    step: int
    losses: Losses
    weights: AdapterWeights = field(repr=False)


class Selection:
    """Remembers the adapter with the lowest mean held-out loss; the earliest of equal ones.

    The noise and the timesteps are the same each time, so the losses of two steps are a pair, and much of what makes
    one of them high makes the other high too.

    Args:
        patience: scores in a row without a better one that are borne; 0: any number.
        measure: names all that the losses depend on beside the adapter; those of another measure say nothing here.

    Attributes:
        best: so far; None before the first score.
        waited: scores since then.
    """

    def __init__(self, patience: int, measure: str) -> None:
        self._patience, self._measure = patience, key("selection", measure)
        self.best: Best | None = None
        self.waited = 0

    def observe(self, step: int, losses: Losses, weights: AdapterWeights) -> bool:
        """Take in a score; whether it is the best so far."""
        if self.best is not None and losses.mean() >= self.best.losses.mean():
            self.waited += 1
            return False
        self.best, self.waited = Best(step, losses, weights), 0
        return True

    def miss(self) -> None:
        """Take in that there is no score: the loss was not finite."""
        self.waited += 1

    @property
    def is_exhausted(self) -> bool:
        """Whether the patience has run out."""
        return 0 < self._patience <= self.waited

    def against_best(self, losses: Losses, seed: int) -> Score:
        """Losses less the best ones."""
        assert self.best is not None
        return paired_difference(losses, self.best.losses, seed)

    def state_dict(self) -> dict[str, Tensor]:
        """All that ``load_state_dict`` needs, fit for safetensors; empty before the first score."""
        if self.best is None:
            return {}
        numbers = {"step": self.best.step, "waited": self.waited, "measure": self._measure}
        state = {f"{_KIND}{name}": torch.tensor(number) for name, number in numbers.items()}
        state[f"{_KIND}losses"] = torch.from_numpy(self.best.losses.copy())
        state |= {f"{_BEST}{name}": tensor for name, tensor in to_tensors(self.best.weights).items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> bool:
        """Go on where ``state`` was taken; False, and nothing done, if its losses are of another measure."""
        if f"{_KIND}step" not in state:
            return True
        if int(state[f"{_KIND}measure"]) != self._measure:
            return False
        losses = state[f"{_KIND}losses"].numpy().copy()
        best = {name.removeprefix(_BEST): tensor for name, tensor in state.items() if name.startswith(_BEST)}
        self.best = Best(int(state[f"{_KIND}step"]), losses, from_tensors(best))
        self.waited = int(state[f"{_KIND}waited"])
        return True
