"""Sample sheets painted while training, and the strip of pictures that they make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from veneer.errors import UserError
from veneer.family.prompt_cache import PromptCache
from veneer.family.protocol import Family
from veneer.run.events import Callback, SamplesSaved
from veneer.run.folder import SAMPLES, TIMELAPSE, sheets_in
from veneer.sample.clip import CLIP_SUFFIX, Clip, contact_headings, contact_sheet, middle, moving_sheet, write_clip
from veneer.sample.comparison import SamplePrompts, SampleSettings, open_references, paint
from veneer.sample.files import read_note, read_pictures, write_picture, write_sheet
from veneer.sample.sheet import fitted
from veneer.sample.timelapse import spread_evenly, timelapse
from veneer.train.events import Warned

__all__ = ["SampleWriter"]

_COLUMNS = 12  # of the strip; with 128 pixels a picture it is 1,768 wide
_SMALL, _LARGE = 128, 256  # side of a picture on a sheet, in pixels


class SampleWriter:
    """Paints a run's sample sheets, the same prompts from the same seeds each time.

    A full disk costs a sheet and not the run: a warning says so, and the run goes on.

    Args:
        family: carries the adapter in training.
        subjects: what to paint.
        settings: how.
        folder: of the run.
        emit: is called with ``SamplesSaved``, or a warning.
        background: of references that are transparent.
        cache: of what is made of the prompts; None: nothing is kept.
    """

    def __init__(
        self,
        family: Family,
        subjects: SamplePrompts,
        settings: SampleSettings,
        folder: Path,
        emit: Callback,
        background: str = "white",
        cache: PromptCache | None = None,
    ) -> None:
        self._cache = cache
        self._family, self._settings, self._folder, self._emit = family, settings, folder, emit
        self._prompts, self._references, self._background = subjects.prompts, subjects.references, background
        self._cell = min(max(family.resolution, _SMALL), _LARGE)
        self._columns: dict[int, list[Image.Image]] = {}  # of the strip by step, so that no sheet is read twice

    def write(self, step: int) -> None:
        """Paint and write the sheet of a step, and bring the strip up to date."""
        references = open_references(self._references, self._background)
        clips = paint(self._family, self._prompts, self._settings, references, self._cache)
        path = self._folder / SAMPLES / f"step-{step:09d}.png"
        page = contact_sheet(clips, self._prompts, cell=self._cell)
        try:
            if len(clips[0]) > 1:
                self._write_moving(clips, path.with_suffix(CLIP_SUFFIX))
            write_sheet(page, path, self._note())
            self._emit(SamplesSaved(step, path, self._write_strip()))
        except UserError as fault:
            self._emit(Warned("sample.not_written", f"no samples of step {step}: {fault}"))

    def rebuild(self) -> None:
        """Write the strip of the sheets that an earlier process left, if there are any."""
        try:
            if self._sheets():
                self._write_strip()
        except UserError as fault:
            self._emit(Warned("sample.strip_not_written", f"no strip of the samples so far: {fault}"))

    def _write_moving(self, clips: Sequence[Clip], path: Path) -> None:
        """Write the sheet on which the clips play."""
        rate = self._family.frame_rate
        assert rate is not None, "a base that paints clips has a rate of frames"
        write_clip(moving_sheet(clips, self._prompts, cell=self._cell), path, rate)

    def _write_strip(self) -> Path:
        sheets = self._sheets()
        columns = {
            step: self._columns.get(step) or _column(sheets[step]) for step in spread_evenly(list(sheets), _COLUMNS)
        }
        self._columns = {step: column for step, column in columns.items() if column}
        return write_picture(timelapse(self._columns, self._prompts), self._folder / SAMPLES / TIMELAPSE)

    def _sheets(self) -> dict[int, Path]:
        """Return the sheets that were painted as this run paints: after a change of prompts the strip begins anew."""
        note = self._note()
        return {step: path for step, path in sheets_in(self._folder).items() if read_note(path) == note}

    def _note(self) -> dict[str, Any]:
        settings = self._settings
        painted = [self._prompts, settings.steps, settings.guidance, settings.seed]
        painted += [[[str(path) for path in each] for each in self._references]] if self._references else []
        painted += [settings.frames] if settings.frames > 1 else []
        sha256 = hashlib.sha256(json.dumps(painted).encode()).hexdigest()
        return {
            "cell": self._cell,
            "columns": contact_headings(settings.frames),
            "labels": list(self._prompts),
            "painted": sha256,
        }


def _column(path: Path) -> list[Image.Image]:
    """Return the pictures of a sheet, a row each; none where it cannot be read."""
    return [fitted(middle(row), _SMALL) for row in read_pictures(path) or ()]
