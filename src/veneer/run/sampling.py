"""Sample sheets painted while training, and the strip that they make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from veneer.config.schema import RunConfig
from veneer.errors import UserError
from veneer.family.protocol import Family
from veneer.run.events import SamplesSaved
from veneer.run.folder import SAMPLES, TIMELAPSE, sheets_in
from veneer.sample.comparison import paint
from veneer.sample.files import read_note, read_pictures, write_picture, write_sheet
from veneer.sample.sheet import fitted, sheet
from veneer.sample.timelapse import spread_evenly, timelapse
from veneer.train.events import Warned

__all__ = ["SampleWriter"]

_COLUMNS = 12  # of the strip; with 128 pixels a picture it is 1,768 wide
_SMALL, _LARGE = 128, 256  # side of a picture on a sheet, in pixels


class SampleWriter:
    """Paints a run's sample sheets, the same prompts from the same seeds each time.

    What finds no room on the disk is not worth the run: it is told, and the run goes on.

    Args:
        family: carries the adapter in training.
        config: of the run.
        prompts: what to paint.
        tell: is told of each sheet.
    """

    def __init__(
        self, family: Family, config: RunConfig, prompts: tuple[str, ...], emit: Callable[[object], None]
    ) -> None:
        self._family, self._config, self._prompts, self._emit = family, config, prompts, emit
        self._cell = min(max(family.resolution, _SMALL), _LARGE)
        self._read: dict[int, list[Image.Image]] = {}  # the strip's columns by step, so that no sheet is read twice

    def paint(self, step: int) -> None:
        """Paint the sheet of a step, and bring the strip up to date."""
        pictures = paint(self._family, self._prompts, self._config)
        path = self._config.output.dir / SAMPLES / f"step-{step:09d}.png"
        page = sheet([[picture] for picture in pictures], labels=self._prompts, cell=self._cell)
        try:
            write_sheet(page, path, self._note())
            self._emit(SamplesSaved(step, path, self._write_strip()))
        except UserError as fault:
            self._emit(Warned("sample.not_written", f"no samples of step {step}: {fault}"))

    def rebuild(self) -> None:
        """Make the strip of the sheets that an earlier process left, if there are any."""
        try:
            if self._kept():
                self._write_strip()
        except UserError as fault:
            self._emit(Warned("sample.strip_not_written", f"no strip of the samples so far: {fault}"))

    def _write_strip(self) -> Path:
        kept = self._kept()
        columns = {step: self._read.get(step) or _column(kept[step]) for step in spread_evenly(list(kept), _COLUMNS)}
        self._read = {step: column for step, column in columns.items() if column}
        return write_picture(timelapse(self._read, self._prompts), self._config.output.dir / SAMPLES / TIMELAPSE)

    def _kept(self) -> dict[int, Path]:
        """The sheets that were painted as this run paints: after a change of prompts the strip begins anew."""
        return {
            step: path for step, path in sheets_in(self._config.output.dir).items() if read_note(path) == self._note()
        }

    def _note(self) -> dict[str, Any]:
        sample = self._config.sample
        painted = [self._prompts, sample.steps, sample.guidance, self._config.seed]
        sha256 = hashlib.sha256(json.dumps(painted).encode()).hexdigest()
        return {"cell": self._cell, "columns": [], "labels": list(self._prompts), "painted": sha256}


def _column(path: Path) -> list[Image.Image]:
    """The pictures of a sheet, a row each; none where it cannot be read."""
    return [fitted(row[0], _SMALL) for row in read_pictures(path) or ()]
