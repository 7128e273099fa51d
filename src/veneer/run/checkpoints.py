"""Checkpoints of a run in progress: written when they are due, the superfluous ones removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from veneer.errors import UserError
from veneer.run.events import CheckpointSaved
from veneer.train.events import Warned
from veneer.weights.checkpoint import Origin, prune_checkpoints, write_checkpoint

__all__ = ["CheckpointManager"]


class CheckpointManager:
    """Keeps a run's states on disk.

    Args:
        folder: where they go.
        keep: how many.
        origin: of the run.
        tell: is told of each.
        last: the checkpoint that the run goes on from, and its step.
        writes: one of several processes does, the others only take part.

    Attributes:
        last: the newest checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        origin: Origin,
        emit: Callable[[object], None],
        last: tuple[int, Path] | None = None,
        *,
        writes: bool = True,
    ) -> None:
        self._folder, self._keep, self._origin, self._emit = folder, keep, origin, emit
        self._writes = writes
        self._step = -1 if last is None else last[0]
        self.last = None if last is None else last[1]

    def write(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Write a checkpoint, unless this step's is there already.

        A disk that is full now may have room at the next one, and the checkpoint before is whole still: to stop would
        save nothing, so the fault is told and the run goes on.
        """
        if step == self._step or not self._writes:
            return
        try:
            path = write_checkpoint(self._folder, step, state, self._origin)
        except UserError as fault:
            self._emit(Warned("checkpoint.not_written", f"no checkpoint of step {step}: {fault}; {self.last_in_words}"))
            return
        self._step, self.last = step, path
        self._emit(CheckpointSaved(step, path))
        try:
            prune_checkpoints(self._folder, path, self._keep)
        except OSError as fault:
            self._emit(Warned("checkpoint.not_removed", f"an old checkpoint cannot be removed: {fault}"))

    @property
    def last_in_words(self) -> str:
        """Where a run could go on from."""
        return "there is no checkpoint yet" if self.last is None else f"the last checkpoint is {self.last}"
