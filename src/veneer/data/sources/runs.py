"""Recognise the results of a training run by what a run leaves, whatever its folder is called.

A ``config.yaml`` alone tells nothing: many trainers have one, and so may a folder of pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from veneer.config.document import read_yaml
from veneer.config.load import CONFIG, LOG
from veneer.errors import UserError
from veneer.files import open_regular, read_utf8

__all__ = ["find_runs", "is_painted", "is_run"]

_BESIDE_CONFIG = ("checkpoints", "plan.json", "pytorch_lora_weights.safetensors", "samples")
"""What a run leaves beside its configuration; one of them is enough where the log is gone."""
_PAINTED_FOLDERS = frozenset({"checkpoints", "evaluation", "prior", "samples", "tensorboard"})
_PAINTED_FILES = frozenset({"copying.png", "sheet.png"})
_FIRST_LINE = 2**16  # bytes that a log's first line has at most


def find_runs(files: Iterable[Path]) -> frozenset[Path]:
    """Return the folders among whose files are those that a run leaves."""
    candidates = {file.parent for file in files if file.name in (LOG, CONFIG)}
    return frozenset(folder for folder in candidates if is_run(folder))


def is_run(folder: Path) -> bool:
    """Check whether a folder holds what a run leaves: its log, or its configuration and another result."""
    if _is_log(folder / LOG):
        return True
    return any((folder / name).exists() for name in _BESIDE_CONFIG) and _is_config(folder / CONFIG)


def is_painted(picture: Path, run: Path) -> bool:
    """Check whether a picture in a run's folder has a place that a run paints to."""
    place = picture.relative_to(run).parts
    return place[0] in _PAINTED_FOLDERS if len(place) > 1 else place[0] in _PAINTED_FILES


def _is_log(file: Path) -> bool:
    try:
        with open_regular(file) as lines:
            event = json.loads(lines.readline(_FIRST_LINE))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(event, dict) and {"event", "seconds"} <= event.keys()


def _is_config(file: Path) -> bool:
    try:
        values = read_yaml(read_utf8(file), str(file)).values
    except UserError:
        return False
    return isinstance(values, dict) and {"base", "data", "output"} <= values.keys()
