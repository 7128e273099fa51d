"""Trackio: a local database, or a Hugging Face Space."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from veneer.run.trackers.protocol import SHEETS, TrackedRun

__all__ = ["Trackio"]


class Trackio:
    """A run in Trackio's local database, or where its own environment variables say.

    A step that an earlier process has sent is not sent again: as a resumed run goes on to the same bits, its points
    would be the same.
    """

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._trackio, self._last_step = trackio, run.last_step
        self._run = trackio.init(
            project=run.project, name=run.name, config=dict(run.settings), resume="allow", embed=False
        )
        self.shown_by = f"trackio show --project {shlex.quote(run.project)}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take one point of each curve."""
        if step > self._last_step:
            self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """Take a sheet."""
        if step > self._last_step:
            self._run.log({SHEETS: self._trackio.Image(str(path))}, step=step)

    def result(self, step: int, values: Mapping[str, float]) -> None:
        """Take the final scores as curves of one point."""
        self._run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        """Wait until all is written."""
        self._trackio.finish()
