"""List the pictures of a folder or archive and of the folders below it, by their names. No picture is opened here.

Names that begin with a dot, and folders that operating systems and network storage make for themselves, are passed
over. Pictures that no decoder here reads and pictures in the results of a run are left out with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from veneer.data.location import MAX_BYTES, Location
from veneer.data.manifest import Rejected
from veneer.data.sources.filesystem import DiskFileSystem, FileSystem
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.runs import find_runs, is_painted
from veneer.data.sources.zip_filesystem import ZipFileSystem, is_zip
from veneer.data.unreadable import Unreadable
from veneer.data.wording import few
from veneer.errors import UserError
from veneer.file_kind import HEAD, ZIP, FileKind, kind_of
from veneer.files import decode_text

__all__ = ["CLIP_EXTENSIONS", "EXTENSIONS", "Tree", "find_pictures", "is_clip", "is_picture", "is_readable"]

EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Endings of the pictures that are read, in small letters."""
CLIP_EXTENSIONS = frozenset({".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
"""Endings of the videos that are read, in small letters."""
_OTHER_CLIPS = frozenset({".flv", ".m2ts", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".wmv"})
"""Endings of videos that are not read."""
_UNREADABLE = frozenset(
    {".arw", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".hif", ".jxl", ".nef", ".orf", ".raf", ".rw2", ".svg"}
)
"""Endings of pictures that people have and no decoder here reads: they are named, not passed over in silence."""
_NO_PICTURES = frozenset(
    {".json", ".jsonl", ".npy", ".npz", ".pt", ".py", ".safetensors", ".txt", ".yaml", ".yml", ".zip"}
)
"""Endings of the files that often lie among pictures and need not be opened."""
_ARCHIVES = frozenset({".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"})
"""Endings of archives, which are not looked into where they lie among pictures."""
_LOOKED_AT = 100
"""Files whose kind is looked at where there is no picture."""


@dataclass(frozen=True)
class Tree:
    """A folder or an archive with all files in it and below it.

    Attributes:
        filesystem: that of the files.
        files: their paths, sorted by their parts below the root; some may not be read.
    """

    filesystem: FileSystem
    files: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The folder or archive."""
        return self.filesystem.root

    @cached_property
    def pictures(self) -> tuple[Path, ...]:
        """The files whose ending is that of a picture or a video, readable here or not."""
        return tuple(path for path in self.files if _is_shown(path))

    @cached_property
    def readable(self) -> tuple[Path, ...]:
        """The pictures that there are decoders for, and nothing is known against."""
        known = (path for path in self.files if path.suffix.lower() in EXTENSIONS)
        return tuple(path for path in known if self.filesystem.fault(path) is None)

    @cached_property
    def runs(self) -> frozenset[Path]:
        """The folders that hold the results of a run: training on them again would be a mistake."""
        return find_runs(self.filesystem, self.files, self.head, self.read_text)

    @cached_property
    def own_files(self) -> tuple[Path, ...]:
        """The files that are in no run's results."""
        return tuple(path for path in self.files if not self.runs or self.runs.isdisjoint(path.parents))

    @classmethod
    def walk(cls, place: Path, follow_links: bool = False) -> Tree:
        """List the files below a folder or in an archive.

        Raises:
            UserError: it does not exist, is another file, is broken, or may not be read.
        """
        filesystem = _filesystem(place, follow_links)
        depth = len(place.parts)
        return cls(filesystem, tuple(sorted(filesystem.walk(), key=lambda path: path.parts[depth:])))

    def list_pictures(self, describe: Callable[[Path], Sequence[Entry] | str]) -> Listing:
        """List the pictures among the files, and all that may not be read.

        Args:
            describe: gives a picture's entries, or the reason why it is left out.

        Raises:
            UserError: there is no picture.
        """
        if not self.pictures:
            raise UserError(
                f"no picture in this {self.filesystem.kind}",
                code="data.no_picture",
                where=self.folder,
                remedy=self._remedy_for_no_picture(),
            )
        entries: list[Entry] = []
        rejected: list[Rejected] = []
        for path in self.files:
            reason = self.filesystem.fault(path)
            result = reason or (self._reason_against(path) or describe(path) if _is_shown(path) else ())
            if isinstance(result, str):
                rejected.append(Rejected(path, result, None if reason else self.location(path)))
            else:
                entries += [replace(entry, location=self.location(entry.path)) for entry in result]
        return Listing(tuple(entries), tuple(rejected), (*self.filesystem.notes(), *self._note_archives()))

    def location(self, path: Path) -> Location:
        """Return where the bytes of a file lie."""
        return self.filesystem.location(path)

    def read_text(self, path: Path, limit: int = MAX_BYTES) -> str:
        """Read a text file: UTF-8, or what its byte order mark says.

        Raises:
            UserError: it may not be read, has more bytes than ``limit``, or is not such a text.
        """
        try:
            fault = self.filesystem.fault(path)
            if fault is not None:
                raise Unreadable(fault)
            return decode_text(self.location(path).read(limit), path)
        except (OSError, Unreadable) as error:
            what = f"cannot be read: {getattr(error, 'strerror', None) or error}"
            raise UserError(what, code="files.unreadable", where=path) from None

    def head(self, path: Path, count: int) -> bytes:
        """Return a file's first bytes; none if it is no regular file or may not be read."""
        try:
            return b"" if self.filesystem.fault(path) else self.location(path).head(count)
        except (OSError, Unreadable):
            return b""

    def _kind_of(self, path: Path) -> FileKind | None:
        head = self.head(path, HEAD)
        return kind_of(head) if head else None

    def _remedy_for_no_picture(self) -> str:
        for file in self.files[:_LOOKED_AT]:
            kind = self._kind_of(file)
            if kind is ZIP and self.filesystem.kind == "folder":
                return f"name {file.name} itself, which is {kind.name}"
            if kind is not None and kind.category == "archive":
                return f"unpack {file.name}, which is {kind.name}"
            if kind is not None and kind.category in ("data", "document"):
                return f"{file.name} is {kind.name}: save what it holds as pictures and a metadata.jsonl"
        return f"endings that are read: {' '.join((*sorted(EXTENSIONS), *sorted(CLIP_EXTENSIONS)))}"

    def _note_archives(self) -> list[str]:
        archives = [path for path in self.own_files if path.suffix.lower() in _ARCHIVES]
        remedy = "name each in data.sources" if self.filesystem.kind == "folder" else "unpack them"
        return [f"archives among the pictures are not read: {few(archives)} ({remedy})"] if archives else []

    def find_misnamed(self, listed: Iterable[Path]) -> list[Rejected]:
        """Return the files, of none that are listed, that are pictures by their content and not by their names."""
        found: list[Rejected] = []
        known = frozenset(listed)
        for file in self.own_files:
            if file in known or _is_shown(file) or file.suffix.lower() in _NO_PICTURES:
                continue
            kind = self._kind_of(file)
            if kind is not None and kind.category in ("picture", "other picture"):
                found.append(
                    Rejected(file, f"its name does not end as that of a picture, but it is {kind.name}: rename it")
                )
        return found

    def _reason_against(self, picture: Path) -> str | None:
        if picture.suffix.lower() in _UNREADABLE:
            return f"{picture.suffix} files are not read: save it as PNG or JPEG"
        if picture.suffix.lower() in _OTHER_CLIPS:
            return f"{picture.suffix} files are not read: convert it to MP4"
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
    return list(Tree.walk(folder).readable)


def is_readable(path: Path) -> bool:
    """Check whether a file's ending is not that of a picture that no decoder here reads."""
    return path.suffix.lower() not in _UNREADABLE


def is_picture(path: Path) -> bool:
    """Check whether a file's ending is that of a picture, readable here or not."""
    return path.suffix.lower() in EXTENSIONS | _UNREADABLE


def is_clip(path: Path) -> bool:
    """Check whether a file's ending is that of a video that is read here."""
    return path.suffix.lower() in CLIP_EXTENSIONS


def _is_shown(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS | _UNREADABLE | CLIP_EXTENSIONS | _OTHER_CLIPS


def _filesystem(place: Path, follow_links: bool) -> FileSystem:
    if not place.exists():
        raise UserError("no such folder", code="data.no_such_folder", where=place)
    if place.is_dir():
        return DiskFileSystem(place, follow_links)
    if is_zip(place):
        return ZipFileSystem(place)
    what = "is a file, but should be a folder or a zip of pictures"
    raise UserError(what, code="data.not_a_folder", where=place)
