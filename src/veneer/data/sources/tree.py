"""List the pictures of a folder and the folders below it, by their names. No file is opened here.

Names that begin with a dot are passed over. Pictures that no decoder here reads, and pictures in the results of a
run, are left out with a reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from veneer.data.manifest import Rejected
from veneer.data.sources.protocol import Entry, Listing
from veneer.errors import UserError

__all__ = ["EXTENSIONS", "Tree", "find_pictures", "is_picture"]

EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Endings of the pictures that are read, in small letters."""
_UNREADABLE = frozenset({".arw", ".cr2", ".dng", ".heic", ".heif", ".jxl", ".nef", ".svg"})
"""Endings of pictures that people have and no decoder here reads: they are named, not passed over in silence."""
_RUN = "config.yaml"
"""What a run leaves in its folder; pictures below it were painted, and training on them again would be a mistake."""


@dataclass(frozen=True)
class Tree:
    """A folder with all files in it and below it, sorted by path."""

    folder: Path
    files: tuple[Path, ...]

    @classmethod
    def walk(cls, folder: Path) -> Tree:
        """List the files below a folder.

        Raises:
            UserError: the folder does not exist, is a file, or may not be read.
        """
        return cls(folder, tuple(_files_below(folder)))

    def list_pictures(self, describe: Callable[[Path], Entry | str]) -> Listing:
        """List the pictures among the files.

        Args:
            describe: gives a picture's entry, or the reason why it is left out.

        Raises:
            UserError: there is no picture.
        """
        pictures = [path for path in self.files if is_picture(path)]
        if not pictures:
            remedy = f"endings that are read: {' '.join(sorted(EXTENSIONS))}"
            raise UserError("no picture in this folder", code="data.no_picture", where=self.folder, remedy=remedy)
        runs = {path.parent for path in self.files if path.name == _RUN} - {self.folder}
        entries: list[Entry] = []
        rejected: list[Rejected] = []
        for picture in pictures:
            result = _reason_against(picture, runs) or describe(picture)
            if isinstance(result, str):
                rejected.append(Rejected(picture, result))
            else:
                entries.append(result)
        return Listing(tuple(entries), tuple(rejected))


def find_pictures(folder: Path) -> list[Path]:
    """Return the files below a folder that should be pictures by their ending, sorted by path.

    Raises:
        UserError: the folder does not exist, is a file, or may not be read.
    """
    return [path for path in Tree.walk(folder).files if path.suffix.lower() in EXTENSIONS]


def is_picture(path: Path) -> bool:
    """Check whether a file's ending is that of a picture, readable here or not."""
    return path.suffix.lower() in EXTENSIONS | _UNREADABLE


def _reason_against(picture: Path, runs: set[Path]) -> str | None:
    if picture.suffix.lower() in _UNREADABLE:
        return f"{picture.suffix} files are not read: save it as PNG or JPEG"
    if not runs.isdisjoint(picture.parents):
        return f"in the results of a run ({_RUN} is beside it)"
    return None


def _files_below(folder: Path) -> list[Path]:
    if not folder.exists():
        raise UserError("no such folder", code="data.no_such_folder", where=folder)
    if not folder.is_dir():
        raise UserError("is a file, but should be a folder of pictures", code="data.not_a_folder", where=folder)
    files: list[Path] = []
    seen: set[str] = set()
    for here, below, names in os.walk(folder, onerror=_refuse_unreadable, followlinks=True):
        real = os.path.realpath(here)
        # a link to a folder is followed once, so that one to its own parent ends
        below[:] = sorted(name for name in below if not _is_hidden(name) and real not in seen)
        files += [Path(here, name) for name in names if not _is_hidden(name) and real not in seen]
        seen.add(real)
    return sorted(files, key=lambda path: path.relative_to(folder).parts)


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"cannot be read: {error.strerror}", code="data.unreadable_folder", where=error.filename)


def _is_hidden(name: str) -> bool:
    """Check for hidden files, and for what macOS puts into zip files beside each picture."""
    return name.startswith(".") or name == "__MACOSX"
