"""Where a picture's bytes lie, and the one way in which they are read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, cast

from veneer.data.unreadable import Unreadable, check_size
from veneer.data.zip_archive import ZipArchive
from veneer.files import open_regular

__all__ = ["AT_LOCATION", "AT_PATH", "MAX_BYTES", "Located", "Location"]

MAX_BYTES = 2**30
"""Bytes of a picture, at most: more than any of :data:`veneer.data.decode.MAX_PIXELS` pixels takes."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a picture's bytes lie: a whole file, a member of a zip, or a part of a file. It is plain and pickles.

    Attributes:
        container: the file.
        member: its member's name, as its directory spells it; None: the bytes are not a zip's member.
        offset: first byte of a part of a file, which is stored as it is; None: no part.
        size: bytes of that part.
    """

    is_remote: ClassVar[bool] = False
    """Whether the bytes come over a network, so that near ones are better read one after the other."""

    container: Path
    member: str | None = None
    offset: int | None = None
    size: int | None = None

    def __str__(self) -> str:
        """Return the place for messages, a member as if its archive were a folder."""
        return str(self.container) if self.member is None else f"{self.container}/{self.member}"

    def __lt__(self, other: Location) -> bool:
        """Order by file, then by member and place in it."""
        return self._order < other._order

    @property
    def path(self) -> Path:
        """The place for messages, as a path."""
        return Path(str(self))

    @property
    def _order(self) -> tuple[Path, str, int]:
        return self.container, self.member or "", self.offset or 0

    def read(self, limit: int = MAX_BYTES) -> bytes:
        """Read all bytes, of which there may be ``limit`` at most.

        Raises:
            OSError: the file is not there, is no regular file, or may not be read.
            Unreadable: there are more bytes, or the archive or its member is broken.
        """
        if self.offset is not None:
            return self._read_part(limit)
        if self.member is not None:
            return ZipArchive.open(self.container).read(self.member, limit)
        with open_regular(self.container) as file:
            check_size(os.fstat(file.fileno()).st_size, limit)
            return file.read(limit)

    def head(self, count: int) -> bytes:
        """Read the first bytes, fewer than ``count`` where there are no more.

        Raises:
            OSError: as of :meth:`read`.
            Unreadable: likewise.
        """
        if self.offset is None and self.member is not None:
            return ZipArchive.open(self.container).head(self.member, count)
        with open_regular(self.container) as file:
            file.seek(self.offset or 0)
            return file.read(count if self.size is None else min(count, self.size))

    def _read_part(self, limit: int) -> bytes:
        size = self.size or 0
        check_size(size, limit)
        with open_regular(self.container) as file:
            file.seek(self.offset or 0)
            content = file.read(size)
        if len(content) < size:
            raise Unreadable(f"{self.container} is cut short: {size - len(content):,} bytes of it are missing")
        return content


AT_PATH = Location(Path())
"""Stands for a location that is left out, beside a path: the file of that path."""
AT_LOCATION: Final = Path()
"""Stands for a path that is left out, beside a location: the location's own."""


class Located:
    """A record with a path and a location, either of which may be left out.

    A path that is left out is made when it is asked for: those of a million records take a quarter of a gigabyte.
    """

    __slots__ = ()

    path: Path
    location: Location

    def _complete(self) -> None:
        """Fill in what is left out."""
        if self.location is AT_PATH:
            object.__setattr__(self, "location", Location(self.path))
        if self.path is AT_LOCATION:
            object.__delattr__(self, "path")

    @property
    def given_path(self) -> Path:
        """The path as it was given: ``AT_LOCATION`` where it was left out."""
        try:
            return cast(Path, object.__getattribute__(self, "path"))
        except AttributeError:
            return AT_LOCATION

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Path:
            """Make the path that was left out; nothing else is ever missing."""
            if name == "path":
                return self.location.path
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
