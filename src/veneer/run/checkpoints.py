"""Checkpoints of a run in progress: written when they are due, the superfluous ones removed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from veneer.errors import UserError
from veneer.run.events import Callback, CheckpointSaved
from veneer.run.folder import CHECKPOINTS
from veneer.run.identity import Identity
from veneer.train.distributed import ALONE, ProcessGroup
from veneer.train.events import Warned
from veneer.weights.checkpoint import Checkpoint, checkpoints_in, prune_checkpoints, write_checkpoint

__all__ = ["CheckpointManager"]


class CheckpointManager:
    """Keeps a run's newest states on disk. Of several processes the first writes; all know the newest checkpoint.

    Args:
        run: whose states they are.
        start: the checkpoint that the run goes on from.
        emit: is called with ``CheckpointSaved``, and with a warning where one cannot be written.
        processes: that train together.

    Attributes:
        last: the newest checkpoint; None: there is none yet.
    """

    def __init__(
        self, run: Identity, start: Checkpoint | None, emit: Callback, processes: ProcessGroup = ALONE
    ) -> None:
        self._folder, self._keep, self._provenance = (
            run.folder / CHECKPOINTS,
            run.config.train.keep_checkpoints,
            run.provenance,
        )
        self._emit, self._processes = emit, processes
        self._step = -1 if start is None else start.step
        self.last: Path | None = None if start is None else start.path

    def write(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Write a checkpoint, unless this step's is there already; the other processes do nothing.

        A disk that is full now may have room at the next one, and the checkpoint before is whole still: to stop would
        save nothing, so the fault is a warning and the run goes on.
        """
        if step == self._step or not self._processes.is_first:
            return
        try:
            path = write_checkpoint(self._folder, step, state, self._provenance)
        except UserError as fault:
            text = f"no checkpoint of step {step}: {fault}; {self.last_in_words}"
            self._emit(Warned("checkpoint.not_written", text))
            return
        self._step, self.last = step, path
        self._emit(CheckpointSaved(step, path))
        try:
            prune_checkpoints(self._folder, path, self._keep)
        except OSError as fault:
            self._emit(Warned("checkpoint.not_removed", f"an old checkpoint cannot be removed: {fault}"))

    def share(self) -> None:
        """Let all processes know the newest checkpoint, which the first has written."""
        path = self._processes.all_gather(None if self.last is None else str(self.last))[0]
        self.last = None if path is None else Path(path)

    @property
    def last_in_words(self) -> str:
        """The newest checkpoint, as part of a message."""
        if self._processes.is_first:
            return "there is no checkpoint yet" if self.last is None else f"the last checkpoint is {self.last}"
        # the first process may be gone before it could share one that it wrote, or be writing one at this moment
        found = checkpoints_in(self._folder)
        if not found:
            return f"if the first process could write a checkpoint, it is in {self._folder}"
        return f"the last checkpoint is {found[-1]}"
