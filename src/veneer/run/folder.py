"""A run's folder: the names in it, whether it may be written to, and the log of events."""

from __future__ import annotations

import io
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import TracebackType

from PIL import Image

from veneer.errors import UserError
from veneer.files import atomic_write
from veneer.weights.file import FILE_NAME

__all__ = ["CARD", "CONFIG", "LOG", "SAMPLES", "SHEET", "EventLog", "claim", "clear", "make_writable", "write_picture"]

CONFIG = "config.yaml"
"""The whole configuration, resolved; written before training starts."""
LOG = "run.jsonl"
"""One JSON object an event."""
SAMPLES = "samples"
"""Folder of the sheets painted while training."""
SHEET = "sheet.png"
"""Base and adapter side by side."""
CARD = "README.md"
"""The adapter's model card."""


def make_writable(folder: Path, remedy: str) -> None:
    """Make a folder and see that files can be written there, before anything takes long.

    Raises:
        UserError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # permissions, quotas and read-only disks all show in an attempt, and only there
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise UserError(f"cannot be written to: {error.strerror or error}", where=folder, remedy=remedy) from error


def claim(folder: Path, *, overwrite: bool = False) -> None:
    """Take a folder for a run.

    Raises:
        UserError: it cannot be written to, or holds a result that is not to be overwritten.
    """
    make_writable(folder, "choose another output=FOLDER")
    if (folder / FILE_NAME).exists() and not overwrite:
        raise UserError(
            f"already holds a result, {FILE_NAME}", where=folder, remedy="choose another output=FOLDER, or --overwrite"
        )


def clear(folder: Path) -> None:
    """Remove an earlier run's result, so that no file of it is taken for one of the next."""
    for name in (FILE_NAME, CARD, CONFIG, LOG, SHEET):
        (folder / name).unlink(missing_ok=True)
    for sheet in (folder / SAMPLES).glob("step-*.png"):
        sheet.unlink()


def write_picture(picture: Image.Image, path: Path) -> Path:
    """Write a picture as PNG, whole or not at all."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    atomic_write(path, content.getvalue())
    return path


class EventLog:
    """Writes events as lines of JSON, each flushed when it comes, with the seconds since the log was opened."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._began = time.monotonic()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def __call__(self, event: object) -> None:
        """Write one event: its class's name and its fields, less tensors and other objects without a text."""
        assert is_dataclass(event)
        seconds = round(time.monotonic() - self._began, 3)
        line = {"event": type(event).__name__, "seconds": seconds, **_plain_fields(event)}
        self._file.write(json.dumps(line, default=_plain, ensure_ascii=False) + "\n")
        self._file.flush()


def _plain_fields(event: object) -> dict[str, object]:
    assert is_dataclass(event)
    # what an event leaves out of its repr, such as an adapter's factors, is too large for a line as well
    return {field.name: _finite(getattr(event, field.name)) for field in fields(event) if field.repr}


def _finite(value: object) -> object:
    """JSON has no infinity; an interval's open end is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: object) -> object:
    if is_dataclass(value):
        return _plain_fields(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
