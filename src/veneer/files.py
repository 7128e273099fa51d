"""Files written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from veneer.errors import UserError

__all__ = ["atomic_write"]


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file that a reader sees whole or not at all: beside its place, synced, renamed.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_synced(beside, content)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", where=path) from error


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
