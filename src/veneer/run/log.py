"""The log of a run's events, ``run.jsonl``."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

from veneer.files import atomic_write
from veneer.train.events import Warned

__all__ = ["EventBus", "EventLog", "cut_log", "events_in"]


class EventBus:
    """Tells a listener each event of a run, and its log as well: what comes before the log is open comes first in it.

    Args:
        listen: is told each event, and once that the log has no room for all.

    Listeners that are added are told after those two, and of what comes from then on.
    """

    def __init__(self, callback: Callable[[object], None]) -> None:
        self._callback = callback
        self._added: list[Callable[[object], None]] = []
        self._early: list[object] = []
        self._log: EventLog | None = None

    def open(self, log: EventLog) -> None:
        """From now on, write."""
        self._log = log
        for event in self._early:
            log(event)

    def add(self, listener: Callable[[object], None]) -> None:
        """From now on, tell this one as well."""
        self._added.append(listener)

    def __call__(self, event: object) -> None:
        """Tell one event."""
        if self._log is None:
            self._early.append(event)
            self._callback(event)
            return
        before = self._log.fault
        self._log(event)
        for callback in (self._callback, *self._added):
            callback(event)
        if self._log.fault is not before:
            self._callback(
                Warned("log.not_written", f"the log is not whole, for an event could not be written: {self._log.fault}")
            )


class EventLog:
    """Adds events to a file as lines of JSON, each written when it comes, with the seconds since the log was opened.

    A disk that is full stops no run: the lines that find no room are left out, and no line is ever torn.

    Attributes:
        fault: why the first of such lines was left out; None if none was.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._began = time.monotonic()
        self.fault: OSError | None = None

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
        self._append(json.dumps(line, default=_plain, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")

    def _append(self, line: bytes) -> None:
        try:
            # unbuffered, so that a line is in the file once this returns: all of it, or less on a full disk
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += len(line)
        except OSError as error:
            self.fault = self.fault or error
            with suppress(OSError):
                self._file.truncate(self._size)


def events_in(path: Path) -> Iterator[dict[str, Any]]:
    """The events that a log tells, in their order; none where there is no log.

    What a killed process left of its last line is passed over.
    """
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if isinstance(told, dict) and "event" in told:
                yield told


def cut_log(path: Path, step: int) -> None:
    """Take from a log what a run told after a checkpoint of ``step``: the run that goes on from there tells it anew.

    What a killed process left of its last line goes as well.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = list(takewhile(lambda line: _is_told_by(line, step), lines))
    if len(kept) < len(lines):
        atomic_write(path, b"".join(kept))


def _is_told_by(line: bytes, step: int) -> bool:
    try:
        told = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and told.get("event") not in ("Finished", "Failed") and told.get("step", 0) <= step


def _plain_fields(event: object) -> dict[str, object]:
    assert is_dataclass(event)
    # what an event leaves out of its repr, such as an adapter's weights, is too large for a line as well
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
