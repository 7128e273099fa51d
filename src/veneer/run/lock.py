"""A lock that lets one run at a time work in a folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from veneer.errors import UserError

__all__ = ["LOCK", "locked"]

LOCK = ".lock"
"""File that is locked as long as a run works in its folder; names the process, at whose death the kernel unlocks it."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other run out of a folder.

    Raises:
        UserError: another run is there; it is named.
    """
    path = folder / LOCK
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        what = f"is in use by another run ({_holder(path)})"
        raise UserError(
            what, code="output.in_use", where=folder, remedy="wait for it, or choose another output.dir=FOLDER"
        ) from None
    except OSError as error:
        what = f"cannot be locked: {error.strerror or error}"
        raise UserError(what, code="output.not_lockable", where=path) from error
    try:
        with suppress(OSError):  # a full disk; the lock itself needs no space
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        yield
    finally:
        # while it is still held: whoever opened the file meanwhile finds it nameless and tries again
        with suppress(OSError):
            path.unlink()
        lock.release()


def _holder(path: Path) -> str:
    # it may be gone by now, or, on Windows, be unreadable while it is held
    with suppress(OSError, UnicodeDecodeError):
        if text := path.read_text("utf-8"):
            return text
    return "its process is not known"
