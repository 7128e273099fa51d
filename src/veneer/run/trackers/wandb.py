"""Weights & Biases: a run on its server, or files until there is a connection."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from veneer.run.trackers.protocol import SHEETS, TrackedRun

__all__ = ["Wandb"]


class Wandb:
    """A run at Weights & Biases, or with ``WANDB_MODE=offline`` in ``wandb/`` of the run's folder.

    No step is sent twice, as its points would be the same. The final scores are in the run's summary.
    """

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._wandb, self._last_step = wandb, run.last_step
        self._run = wandb.init(
            project=run.project,
            id=run.name,
            name=run.name,
            dir=str(run.folder),
            config=dict(run.settings),
            resume="allow",
            settings=wandb.Settings(console="off"),  # else it would keep every stroke of the bar
        )
        # without a connection there is no page, and its files lie above those of the run
        self.shown_by = self._run.url or f"wandb sync {shlex.quote(str(Path(self._run.dir).parent))}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take one point of each curve."""
        if step > self._last_step:
            self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """Take a sheet."""
        if step > self._last_step:
            self._run.log({SHEETS: self._wandb.Image(str(path))}, step=step)

    def result(self, step: int, values: Mapping[str, float]) -> None:
        """Put the final scores into the run's summary."""
        self._run.summary.update(dict(values))

    def close(self, failed: bool) -> None:
        """Wait until all is sent, or written where it is offline."""
        self._run.finish(exit_code=int(failed))
