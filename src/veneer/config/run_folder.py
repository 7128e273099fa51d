"""Recognise a run's folder by what a run leaves there, whatever the folder is called.

A ``config.yaml`` alone tells nothing: many trainers have one, and so may a folder of pictures. Nor does a ``run.jsonl``
whose lines are no events.
"""

from __future__ import annotations

import json
from pathlib import Path

from veneer.config.document import read_yaml
from veneer.errors import UserError
from veneer.files import open_regular, read_utf8

__all__ = ["CONFIG", "LOG", "has_log", "is_run"]

CONFIG = "config.yaml"
"""In a run's folder: the whole configuration, resolved; written before training starts."""
LOG = "run.jsonl"
"""In a run's folder: one JSON object an event."""
_BESIDE_CONFIG = ("checkpoints", "plan.json", "pytorch_lora_weights.safetensors", "samples")
"""What a run leaves beside its configuration; one of them is enough where the log is gone."""
_FIRST_LINE = 2**16  # bytes that a log's first line has at most


def has_log(folder: Path) -> bool:
    """Check whether a folder has a run's log, which is made before anything else and is empty until the first event."""
    line = _first_line(folder)
    return line is not None and (not line or _is_event(line))


def is_run(folder: Path) -> bool:
    """Check whether a folder holds what a run leaves: events in its log, or its configuration and another result."""
    line = _first_line(folder)
    if line and _is_event(line):
        return True
    is_begun = line == b"" or any((folder / name).exists() for name in _BESIDE_CONFIG)
    return is_begun and _is_config(folder / CONFIG)


def _first_line(folder: Path) -> bytes | None:
    """Return the first line of what has a log's name; None if there is nothing to read."""
    try:
        with open_regular(folder / LOG) as lines:
            return lines.readline(_FIRST_LINE)
    except OSError:
        return None


def _is_event(line: bytes) -> bool:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and {"event", "seconds"} <= event.keys()


def _is_config(file: Path) -> bool:
    try:
        values = read_yaml(read_utf8(file), str(file)).values
    except UserError:
        return False
    return isinstance(values, dict) and {"base", "data", "output"} <= values.keys()
