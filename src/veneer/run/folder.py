"""A run's folder: the names in it, and whether it may be written to."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from veneer.errors import UserError
from veneer.files import atomic_write
from veneer.weights.checkpoint import checkpoints_in, clear_checkpoints
from veneer.weights.file import FILE_NAME

__all__ = [
    "CARD",
    "CHECKPOINTS",
    "CONFIG",
    "LOG",
    "SAMPLES",
    "SHEET",
    "claim",
    "clear",
    "make_writable",
    "write_picture",
]

CHECKPOINTS = "checkpoints"
"""Folder of the states from which a stopped run goes on."""
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
    """Take a folder for a run that starts from nothing.

    Raises:
        UserError: it holds a result, or a run that was stopped, and they are not to be overwritten.
    """
    if overwrite:
        return
    if (folder / FILE_NAME).exists():
        raise UserError(
            f"already holds a result, {FILE_NAME}", where=folder, remedy="choose another output=FOLDER, or --overwrite"
        )
    if checkpoints_in(folder / CHECKPOINTS):
        remedy = "--resume goes on with it, --overwrite starts over"
        raise UserError("holds checkpoints of an unfinished run", where=folder, remedy=remedy)


def clear(folder: Path) -> None:
    """Remove an earlier run's result, so that no file of it is taken for one of the next."""
    for name in (FILE_NAME, CARD, CONFIG, LOG, SHEET):
        (folder / name).unlink(missing_ok=True)
    for sheet in (folder / SAMPLES).glob("step-*.png"):
        sheet.unlink()
    clear_checkpoints(folder / CHECKPOINTS)


def write_picture(picture: Image.Image, path: Path) -> Path:
    """Write a picture as PNG, whole or not at all."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    atomic_write(path, content.getvalue())
    return path
