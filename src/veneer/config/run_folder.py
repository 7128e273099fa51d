"""Recognise a run's folder by what a run leaves there, whatever the folder is called.

A ``config.yaml`` alone tells nothing: many trainers have one, and so may a folder of pictures. Nor does a ``run.jsonl``
whose lines are no events.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

from veneer.config.document import read_yaml
from veneer.errors import UserError
from veneer.files import open_regular, read_utf8

__all__ = ["CONFIG", "FIRST_LINE", "LOG", "are_of_run", "has_log", "is_run"]

CONFIG = "config.yaml"
"""In a run's folder: the whole configuration, resolved; written before training starts."""
LOG = "run.jsonl"
"""In a run's folder: one JSON object an event."""
_BESIDE_CONFIG = ("checkpoints", "plan.json", "pytorch_lora_weights.safetensors", "samples")
"""What a run leaves beside its configuration; one of them is enough where the log is gone."""
FIRST_LINE = 2**16
"""Bytes that a log's first line has at most."""


def has_log(folder: Path) -> bool:
    """Check whether a folder has a run's log, which is made before anything else and is empty until the first event."""
    line = _first_line(folder)
    return line is not None and (not line or _is_event(line))


def is_run(folder: Path) -> bool:
    """Check whether a folder holds what a run leaves: events in its log, or its configuration and another result."""
    beside = [name for name in _BESIDE_CONFIG if (folder / name).exists()]
    return are_of_run(_first_line(folder), lambda: _text_of(folder / CONFIG), beside)


def are_of_run(log: bytes | None, config: Callable[[], str | None], names: Collection[str]) -> bool:
    """Check whether files that lie together, in a folder or an archive, are what a run leaves.

    Args:
        log: the first line of what has a log's name, without its end where it is long; None: there is none.
        config: returns the text of what has a configuration's name; None: there is none.
        names: of all that lies there.
    """
    line = None if log is None else log[: log.find(b"\n") + 1 or None]
    if line and _is_event(line):
        return True
    is_begun = line == b"" or any(name in names for name in _BESIDE_CONFIG)
    return is_begun and _is_config(config())


def _first_line(folder: Path) -> bytes | None:
    """Return the first line of what has a log's name; None if there is nothing to read."""
    try:
        with open_regular(folder / LOG) as lines:
            return lines.readline(FIRST_LINE)
    except OSError:
        return None


def _is_event(line: bytes) -> bool:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and {"event", "seconds"} <= event.keys()


def _text_of(file: Path) -> str | None:
    try:
        return read_utf8(file)
    except UserError:
        return None


def _is_config(text: str | None) -> bool:
    try:
        values = None if text is None else read_yaml(text, CONFIG).values
    except UserError:
        return False
    return isinstance(values, dict) and {"base", "data", "output"} <= values.keys()
