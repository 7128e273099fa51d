"""Sheets as files that tell how they were made, so that their pictures can be had again one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from veneer.run.folder import write_picture
from veneer.sample.sheet import table_of

__all__ = ["note_in", "pictures_in", "write_sheet"]

_NOTE = "veneer.sheet"
"""Name of the text in a sheet's file."""


def write_sheet(page: Image.Image, path: Path, note: Mapping[str, Any]) -> Path:
    """Write a sheet with a note.

    Args:
        page: the sheet.
        path: its file.
        note: plain values; ``cell``, ``columns`` (its headings) and ``labels`` (of its rows) take it apart again.
    """
    return write_picture(page, path, {_NOTE: json.dumps(note)})


def note_in(path: Path) -> Mapping[str, Any] | None:
    """What a sheet's file tells, which stands before its pixels; None where it is no sheet of ours."""
    try:
        with Image.open(path) as page:
            return dict(json.loads(page.info[_NOTE]))
    except (OSError, ValueError, KeyError, SyntaxError):
        return None


def pictures_in(path: Path) -> list[list[Image.Image]] | None:
    """A sheet's pictures by row; None where its note does not tell, or somebody has damaged the file."""
    note = note_in(path) or {}
    try:
        columns, labels, cell = note["columns"], note["labels"], note["cell"]
        with Image.open(path) as page:
            return table_of(page.convert("RGB"), columns, labels, cell=cell)
    except (OSError, KeyError, TypeError, SyntaxError):
        return None
