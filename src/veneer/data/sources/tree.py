"""List the pictures of a folder and the folders below it, by their names. No picture is opened here.

Names that begin with a dot, and folders that operating systems and network storage make for themselves, are passed
over. Pictures that no decoder here reads and pictures in the results of a run are left out with a reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from veneer.data.manifest import Rejected
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.runs import find_runs, is_painted
from veneer.errors import UserError
from veneer.file_kind import kind_of_file

__all__ = ["EXTENSIONS", "Tree", "find_pictures", "is_picture"]

EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Endings of the pictures that are read, in small letters."""
_UNREADABLE = frozenset(
    {".arw", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".hif", ".jxl", ".nef", ".orf", ".raf", ".rw2", ".svg"}
)
"""Endings of pictures that people have and no decoder here reads: they are named, not passed over in silence."""
_SYSTEM_FOLDERS = frozenset(
    {
        "#recycle",  # Synology
        "#snapshot",
        "$recycle.bin",  # Windows
        "@eadir",  # Synology: a thumbnail of each picture
        "@recently-snapshot",  # QNAP
        "@recycle",
        "@tmp",
        "__macosx",  # zip files made on macOS
        "found.000",  # Windows
        "lost+found",  # Linux
        "network trash folder",  # netatalk
        "recycler",
        "system volume information",
        "temporary items",
    }
)
"""Names, in small letters, of folders that no user made."""
_NO_PICTURES = frozenset(
    {".json", ".jsonl", ".npy", ".npz", ".pt", ".py", ".safetensors", ".txt", ".yaml", ".yml", ".zip"}
)
"""Endings of the files that often lie among pictures and need not be opened."""
_LOOKED_AT = 100
"""Files whose kind is looked at where there is no picture."""


@dataclass(frozen=True)
class Tree:
    """A folder with all files in it and below it, sorted by path."""

    folder: Path
    files: tuple[Path, ...]

    @cached_property
    def pictures(self) -> tuple[Path, ...]:
        """The files whose ending is that of a picture, readable here or not."""
        return tuple(path for path in self.files if is_picture(path))

    @cached_property
    def runs(self) -> frozenset[Path]:
        """The folders that hold the results of a run: training on them again would be a mistake."""
        return find_runs(self.files)

    @cached_property
    def own_files(self) -> tuple[Path, ...]:
        """The files that are in no run's results."""
        return tuple(path for path in self.files if not self.runs or self.runs.isdisjoint(path.parents))

    @classmethod
    def walk(cls, folder: Path) -> Tree:
        """List the files below a folder.

        Raises:
            UserError: the folder does not exist, is a file, or may not be read.
        """
        return cls(folder, tuple(_files_below(folder)))

    def list_pictures(self, describe: Callable[[Path], Sequence[Entry] | str]) -> Listing:
        """List the pictures among the files.

        Args:
            describe: gives a picture's entries, or the reason why it is left out.

        Raises:
            UserError: there is no picture.
        """
        if not self.pictures:
            remedy = self._remedy_for_no_picture()
            raise UserError("no picture in this folder", code="data.no_picture", where=self.folder, remedy=remedy)
        entries: list[Entry] = []
        rejected: list[Rejected] = []
        for picture in self.pictures:
            result = self._reason_against(picture) or describe(picture)
            if isinstance(result, str):
                rejected.append(Rejected(picture, result))
            else:
                entries += result
        return Listing(tuple(entries), tuple(rejected))

    def _remedy_for_no_picture(self) -> str:
        for file in self.files[:_LOOKED_AT]:
            kind = kind_of_file(file)
            if kind is not None and kind.category == "archive":
                return f"unpack {file.name}, which is {kind.name}"
            if kind is not None and kind.category in ("data", "document"):
                return f"{file.name} is {kind.name}: save what it holds as pictures and a metadata.jsonl"
        return f"endings that are read: {' '.join(sorted(EXTENSIONS))}"

    def find_misnamed(self, listed: Iterable[Path]) -> list[Rejected]:
        """Return the files, of none that are listed, that are pictures by their content and not by their names."""
        found: list[Rejected] = []
        known = frozenset(listed)
        for file in self.own_files:
            if file in known or is_picture(file) or file.suffix.lower() in _NO_PICTURES:
                continue
            kind = kind_of_file(file)
            if kind is not None and kind.category in ("picture", "other picture"):
                found.append(
                    Rejected(file, f"its name does not end as that of a picture, but it is {kind.name}: rename it")
                )
        return found

    def _reason_against(self, picture: Path) -> str | None:
        if picture.suffix.lower() in _UNREADABLE:
            return f"{picture.suffix} files are not read: save it as PNG or JPEG"
        # pictures may lie in the folder that a run of theirs wrote to
        run = next((run for run in picture.parents if run in self.runs), None) if self.runs else None
        if run is not None and (run != self.folder or is_painted(picture, run)):
            return f"in the results of a run ({run})"
        return None


def find_pictures(folder: Path) -> list[Path]:
    """Return the files below a folder that should be pictures by their ending, sorted by path.

    Raises:
        UserError: the folder does not exist, is a file, or may not be read.
    """
    return [path for path in Tree.walk(folder).files if path.suffix.lower() in EXTENSIONS]


def is_picture(path: Path) -> bool:
    """Check whether a file's ending is that of a picture, readable here or not."""
    return path.suffix.lower() in EXTENSIONS | _UNREADABLE


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
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS
