"""The log of a run's events, ``run.jsonl``."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

from veneer.files import atomic_write
from veneer.printable import printable
from veneer.run.events import Callback, SurveyAdvanced
from veneer.train.events import Warned

__all__ = ["EventBus", "EventLog", "cut_log", "events_in"]


class EventBus:
    """Passes each event of a run to its log and then to its callbacks.

    Events that come before the log is open are kept, and are the first in it. Once the log has no room for an event, a
    warning of that goes to the callbacks.

    Args:
        callbacks: are called with each event.
    """

    def __init__(self, *callbacks: Callback) -> None:
        self._callbacks = list(callbacks)
        self._pending: list[object] = []
        self._log: EventLog | None = None

    @staticmethod
    def silent() -> EventBus:
        """Return a bus that drops every event: that of a process that neither writes nor shows anything."""
        return _SilentBus()

    def open(self, log: EventLog) -> None:
        """Write all events to a log, those that have come so far first."""
        self._log = log
        for event in self._pending:
            log(event)
        self._pending.clear()

    def add(self, callback: Callback) -> None:
        """Call one more callback from now on."""
        self._callbacks.append(callback)

    def __call__(self, event: object) -> None:
        """Emit one event."""
        fault = self._write(event)
        for callback in tuple(self._callbacks):
            callback(event)
        if fault is not None:
            text = f"the log is not whole, for an event could not be written: {fault}"
            for callback in tuple(self._callbacks):
                callback(Warned("log.not_written", text))

    def _write(self, event: object) -> OSError | None:
        """Write or keep an event; return the log's fault if this event is the first that it has no room for."""
        if isinstance(event, SurveyAdvanced):
            return None
        if self._log is None:
            self._pending.append(event)
            return None
        earlier = self._log.fault
        self._log(event)
        return None if earlier is not None else self._log.fault


class _SilentBus(EventBus):
    def __call__(self, event: object) -> None:
        """Drop an event."""


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
        # whoever reads it on a terminal is as safe as a program, to which the escapes are what they stand for
        self._append(printable(json.dumps(line, default=_plain, ensure_ascii=False)).encode() + b"\n")

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
    """Yield the events of a log in their order; none where there is no log.

    What a killed process left of its last line is passed over.
    """
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event


def cut_log(path: Path, step: int) -> None:
    """Remove from a log what came after a checkpoint of ``step``: the run that goes on from there emits it anew.

    What a killed process left of its last line goes as well.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    remaining = list(takewhile(lambda line: _is_up_to(line, step), lines))
    if len(remaining) < len(lines):
        atomic_write(path, b"".join(remaining))


def _is_up_to(line: bytes, step: int) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and event.get("event") not in ("Finished", "Failed") and event.get("step", 0) <= step


def _plain_fields(event: object) -> dict[str, object]:
    assert is_dataclass(event)
    # what an event leaves out of its repr, such as an adapter's weights, is too large for a line as well
    return {field.name: _finite(getattr(event, field.name)) for field in fields(event) if field.repr}


def _finite(value: object) -> object:
    """Return None for an infinity, which JSON lacks: an interval's open end is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: object) -> object:
    if is_dataclass(value):
        return _plain_fields(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
