"""The files below a root, which is a folder or an archive: what readers of captions and lists need of either."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from veneer.data.location import Location
from veneer.errors import UserError

__all__ = ["DiskFileSystem", "FileSystem", "is_hidden"]

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


class FileSystem(Protocol):
    """Files below a root, by paths that begin with it and are what messages show.

    Attributes:
        root: the folder or archive.
        kind: what it is, in a word.
    """

    root: Path
    kind: str

    def walk(self) -> list[Path]:
        """Return all files below the root but hidden ones, with what stands in their place and may not be read."""

    def children(self, folder: Path) -> list[Path]:
        """Return what lies in a folder, hidden or not, sorted."""

    def is_folder(self, path: Path) -> bool:
        """Check whether there is a folder of this path."""

    def is_file(self, path: Path) -> bool:
        """Check whether there is a regular file of this path."""

    def fault(self, path: Path) -> str | None:
        """Return why something may not be read; None if nothing is known against it."""

    def location(self, path: Path) -> Location:
        """Return where the bytes of a file lie."""

    def notes(self) -> Sequence[str]:
        """Return what a user may want to know of it, a sentence each."""


class DiskFileSystem:
    """A folder.

    Args:
        root: its path.
        follow_links: whether links that lead out of it are read as if what they lead to lay in it.
    """

    kind = "folder"

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        self.root = root
        self._follow_links = follow_links
        self._real_folders = {root: os.path.realpath(root)}
        self._real_root = Path(self._real_folders[root])
        self._unreadable: dict[Path, str] = {}

    def walk(self) -> list[Path]:
        """Return all files below the root but hidden ones, and folders that may not be read.

        Raises:
            UserError: the root may not be read.
        """
        found: list[Path] = []
        seen: set[str] = set()
        waiting = [self.root]
        while waiting:
            folder = waiting.pop()
            real = self._real_folder(folder)
            if real in seen:  # a link to a folder is followed once, so that one to its own parent ends
                continue
            seen.add(real)
            try:
                folders, files = _listed(folder)
            except OSError as error:
                self._unreadable[folder] = f"cannot be read: {error.strerror}"
                folders, files = [], [folder]
            outside = [one for one in folders if self.fault(one) is not None]
            found += [*files, *outside]
            waiting += [one for one in reversed(folders) if one not in outside]
        if self.root in self._unreadable:
            raise UserError(self._unreadable[self.root], code="data.unreadable_folder", where=self.root)
        return found

    def children(self, folder: Path) -> list[Path]:
        """Return what lies in a folder, hidden or not, sorted."""
        return sorted(folder.iterdir())

    def is_folder(self, path: Path) -> bool:
        """Check whether there is a folder of this path."""
        return path.is_dir()

    def is_file(self, path: Path) -> bool:
        """Check whether there is a regular file of this path."""
        return path.is_file()

    def fault(self, path: Path) -> str | None:
        """Return why something may not be read: a link leads to elsewhere, or a folder may not be read."""
        real = os.path.realpath(path) if path.is_symlink() else os.path.join(self._real_folder(path.parent), path.name)
        if not self._follow_links and not Path(real).is_relative_to(self._real_root):
            return f"a link to {real}, out of the folder: follow_links: true in data.sources reads it"
        return self._unreadable.get(path)

    def location(self, path: Path) -> Location:
        """Return where the bytes of a file lie."""
        return Location(path)

    def notes(self) -> Sequence[str]:
        """Return nothing: all that is to be said of a folder is said of its files."""
        return ()

    def _real_folder(self, folder: Path) -> str:
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        return self._real_folders[folder]


def is_hidden(name: str) -> bool:
    """Check whether a file or folder of this name is none of its user's."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files in a folder but hidden ones, sorted."""
    folders: list[Path] = []
    files: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not is_hidden(entry.name):
                (folders if _is_folder(entry) else files).append(folder / entry.name)
    return folders, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
