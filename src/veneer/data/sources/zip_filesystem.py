"""A zip of pictures, with the files beside them, read as if it were a folder; nothing is unpacked to disk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from veneer.data.location import Location
from veneer.data.sources.filesystem import is_hidden
from veneer.data.unreadable import Unreadable
from veneer.data.wording import few
from veneer.data.zip_archive import Member, ZipArchive
from veneer.errors import UserError
from veneer.file_kind import ZIP, kind_of_file

__all__ = ["ZipFileSystem", "is_zip"]

_DRIVE = re.compile(r"[A-Za-z]:")
_MOST_FOLDERS = 100


class ZipFileSystem:
    """The files in a zip archive, whose paths are the archive's and their names in it.

    Args:
        root: the archive.

    Raises:
        UserError: it may not be read, or is broken.
    """

    kind = "archive"

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            members = ZipArchive.open(root).members
        except Unreadable as error:
            raise UserError(str(error), code="data.broken_archive", where=root) from None
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            raise UserError(what, code="data.unreadable_archive", where=root) from None
        self._members: dict[Path, Member] = {}
        self._twice: list[Path] = []
        for member in members:
            path = Path(f"{root}/{member.name}")
            if path in self._members:
                self._twice.append(path)
            self._members[path] = member

    def walk(self) -> list[Path]:
        """Return all files but hidden ones."""
        return [path for path, member in self._members.items() if not any(map(is_hidden, _folders_and_name(member)))]

    def children(self, folder: Path) -> list[Path]:
        """Return what lies in a folder, hidden or not, sorted."""
        return sorted(self._children.get(folder, ()))

    def is_folder(self, path: Path) -> bool:
        """Check whether there is a folder of this path."""
        return path in self._children

    def is_file(self, path: Path) -> bool:
        """Check whether there is a file of this path."""
        return path in self._members

    def fault(self, path: Path) -> str | None:
        """Return why a member may not be read; None if nothing is known against it."""
        member = self._members.get(path)
        if member is None:
            return None
        return _fault_of_name(member.name) or member.fault()

    def location(self, path: Path) -> Location:
        """Return where the bytes of a file lie."""
        return Location(self.root, self._members[path].name)

    def notes(self) -> Sequence[str]:
        """Return what a user may want to know of it, a sentence each."""
        twice = list(dict.fromkeys(self._twice))
        return [f"{len(twice)} names are twice in the archive, and the last of each is read: {few(twice)}"] * bool(
            twice
        )

    @cached_property
    def _children(self) -> dict[Path, set[Path]]:
        """What lies in each folder; members whose names lead elsewhere lie in none."""
        children: dict[Path, set[Path]] = {self.root: set()}
        for path, member in self._members.items():
            if _fault_of_name(member.name) is None:
                while path != self.root and path not in children.setdefault(path.parent, set()):
                    children[path.parent].add(path)
                    path = path.parent
        return children


def is_zip(path: Path) -> bool:
    """Check whether a path is a zip archive of anything but what has an ending of its own, by its content."""
    return kind_of_file(path) is ZIP


def _folders_and_name(member: Member) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(member.name).parts if part not in ("/", ".."))


def _fault_of_name(name: str) -> str | None:
    if "\0" in name:
        return "its name has a zero byte in it"
    if name.startswith("/") or _DRIVE.match(name) or ".." in PurePosixPath(name).parts:
        return "its name leads out of the archive"
    if name.count("/") > _MOST_FOLDERS:
        return f"it lies in more than {_MOST_FOLDERS} folders"
    return None if name else "it has no name"
