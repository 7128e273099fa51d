"""Pictures as files. A sheet's file tells how it was made, so that its pictures can be read back one by one."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from veneer.files import atomic_write
from veneer.sample.sheet import table_of

__all__ = ["read_note", "read_pictures", "write_picture", "write_sheet"]

_NOTE = "veneer.sheet"
"""Key of the text in a sheet's file."""


def write_picture(picture: Image.Image, path: Path, texts: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Write a picture as PNG, whole or not at all, with texts in its metadata; return its path.

    Raises:
        UserError: there is no room for it, or its folder cannot be written to.
    """
    content, info = io.BytesIO(), PngInfo()
    for name, value in texts.items():
        info.add_text(name, value)
    # quick rather than small: a strip is written anew after every sheet, while the training waits
    picture.save(content, format="PNG", pnginfo=info, compress_level=1)
    atomic_write(path, content.getvalue())
    return path


def write_sheet(page: Image.Image, path: Path, note: Mapping[str, Any]) -> Path:
    """Write a sheet with a note that says how to take it apart; return its path.

    Args:
        page: the sheet.
        path: its file.
        note: as JSON has it; ``cell``, ``columns`` (its headings) and ``labels`` (of its rows) take it apart again.
    """
    return write_picture(page, path, {_NOTE: json.dumps(note)})


def read_note(path: Path) -> Mapping[str, Any] | None:
    """Return the note of a sheet's file, which stands before its pixels; None where it is no sheet of ours."""
    try:
        with Image.open(path) as page:
            return dict(json.loads(page.info[_NOTE]))
    except (OSError, ValueError, KeyError, SyntaxError):
        return None


def read_pictures(path: Path) -> list[list[Image.Image]] | None:
    """Return a sheet's pictures by row; None where it has no note, or somebody has damaged the file."""
    note = read_note(path) or {}
    try:
        columns, labels, cell = note["columns"], note["labels"], note["cell"]
        with Image.open(path) as page:
            return table_of(page.convert("RGB"), columns, labels, cell=cell)
    except (OSError, KeyError, TypeError, SyntaxError):
        return None
