"""Find the results of training runs among the files of a folder of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from veneer.config.run_folder import CONFIG, FIRST_LINE, LOG, are_of_run
from veneer.data.sources.filesystem import FileSystem
from veneer.errors import UserError

__all__ = ["find_runs", "is_painted"]

_PAINTED_FOLDERS = frozenset({"checkpoints", "evaluation", "gallery", "prior", "samples", "tensorboard"})
_PAINTED_FILES = frozenset({"copying.png", "sheet.png"})


def find_runs(
    filesystem: FileSystem, files: Iterable[Path], head: Callable[[Path, int], bytes], text: Callable[[Path], str]
) -> frozenset[Path]:
    """Return the folders among whose files are those that a run leaves.

    Args:
        filesystem: of a folder or an archive.
        files: in it.
        head: returns a file's first bytes.
        text: returns a text file's content, and raises ``UserError`` where it cannot be read.
    """

    def is_run(folder: Path) -> bool:
        log, config = folder / LOG, folder / CONFIG
        names = [path.name for path in filesystem.children(folder)]
        first = head(log, FIRST_LINE) if filesystem.is_file(log) else None
        return are_of_run(first, lambda: _text_of(config) if filesystem.is_file(config) else None, names)

    def _text_of(config: Path) -> str | None:
        try:
            return text(config)
        except UserError:
            return None

    return frozenset(filter(is_run, {file.parent for file in files if file.name in (LOG, CONFIG)}))


def is_painted(picture: Path, run: Path) -> bool:
    """Check whether a picture in a run's folder has a place that a run paints to."""
    place = picture.relative_to(run).parts
    return place[0] in _PAINTED_FOLDERS if len(place) > 1 else place[0] in _PAINTED_FILES
