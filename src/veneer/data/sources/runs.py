"""Find the results of training runs among the files of a folder of pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from veneer.config.run_folder import CONFIG, LOG, is_run

__all__ = ["find_runs", "is_painted"]

_PAINTED_FOLDERS = frozenset({"checkpoints", "evaluation", "gallery", "prior", "samples", "tensorboard"})
_PAINTED_FILES = frozenset({"copying.png", "sheet.png"})


def find_runs(files: Iterable[Path]) -> frozenset[Path]:
    """Return the folders among whose files are those that a run leaves."""
    candidates = {file.parent for file in files if file.name in (LOG, CONFIG)}
    return frozenset(folder for folder in candidates if is_run(folder))


def is_painted(picture: Path, run: Path) -> bool:
    """Check whether a picture in a run's folder has a place that a run paints to."""
    place = picture.relative_to(run).parts
    return place[0] in _PAINTED_FOLDERS if len(place) > 1 else place[0] in _PAINTED_FILES
