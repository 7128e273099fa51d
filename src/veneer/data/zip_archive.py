"""Zip archives of which nobody knows who made them: their names, and their members' bytes. Nothing is unpacked to disk.

``zipfile`` reads the directory, once for each state of a file. Members are read here, each by a file handle of its own,
so that threads and forked processes read at the same time, and never more is inflated than was asked for.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from veneer.data.unreadable import Unreadable, check_size
from veneer.file_kind import is_torn_zip, zip_directory_size
from veneer.files import open_regular

__all__ = ["Member", "ZipArchive"]

_MOST_DIRECTORY = 2**25
"""Bytes of an archive's directory, at most: some 300,000 names, which take 300 MB of memory while they are read."""
_MOST_ARCHIVES = 64
"""Archives whose directories are kept."""
_UNUSUAL_RATIO, _UNUSUAL_SIZE = 100, 2**26
"""A member that is larger than this by this much than it is packed is a bomb: no such picture is worth a training."""
_HEADER = b"PK\x03\x04"
_HEADER_SIZE = 30
_ENCRYPTED, _PATCH, _STRONGLY_ENCRYPTED, _IS_UTF8 = 0x1, 0x20, 0x40, 0x800  # bits of a member's flags


class Member(NamedTuple):
    """What an archive's directory says of a member.

    Attributes:
        name: with ``/`` between folders.
        offset: of its header in the file.
        packed: bytes that it takes there.
        size: bytes that it has when it is unpacked.
        crc: checksum of these.
        method: how it is packed.
        flags: as the format has them.
        mode: kind of file, as Unix has it; 0: none is stated.
        overlaps: some of its bytes are another member's as well.
    """

    name: str
    offset: int
    packed: int
    size: int
    crc: int
    method: int
    flags: int
    mode: int
    overlaps: bool = False

    def fault(self) -> str | None:
        """Return why it cannot be read; None if nothing is known against it."""
        ratio = self.size / max(self.packed, 1)
        faults = {
            "a link, which is not followed": stat.S_ISLNK(self.mode),
            "no regular file": stat.S_IFMT(self.mode) not in (0, stat.S_IFREG, stat.S_IFLNK),
            "encrypted: pack it without a password": self.flags & (_ENCRYPTED | _STRONGLY_ENCRYPTED),
            "a patch of another file": self.flags & _PATCH,
            "its bytes are another member's as well, as in a zip bomb": self.overlaps,
            f"would grow from {self.packed:,} bytes to {self.size:,}, as a zip bomb does": (
                ratio > _UNUSUAL_RATIO and self.size > _UNUSUAL_SIZE
            ),
            f"packed by method {self.method}, which is not read: pack it by deflate": (
                self.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            ),
        }
        return next((fault for fault, holds in faults.items() if holds), None)


@dataclass(frozen=True)
class ZipArchive:
    """An archive as it was when its directory was read.

    Attributes:
        path: the file.
        state: what changes when the file does.
        members: files in it, in the order of its directory; of several of one name all.
    """

    path: Path
    state: tuple[int, ...]
    members: tuple[Member, ...]

    @classmethod
    def open(cls, path: Path) -> ZipArchive:
        """Return an archive, of whose directory is read again what has changed since the last time.

        Raises:
            OSError: it is not there, is no regular file, or may not be read.
            Unreadable: it is no archive, or is broken.
        """
        with open_regular(path) as file:
            state = _state(file)
        return _archive(path, state)

    def read(self, name: str, limit: int) -> bytes:
        """Read a member, which may have ``limit`` bytes at most.

        Raises:
            OSError: the archive may not be read.
            Unreadable: there is no such member, it is larger, or it is broken.
        """
        member = self._member(name)
        check_size(member.size, limit)
        content = self._inflate(member, member.size + 1)
        if len(content) != member.size or zlib.crc32(content) != member.crc:
            raise Unreadable("broken: its bytes are not those that the archive's directory tells of")
        return content

    def head(self, name: str, count: int) -> bytes:
        """Read a member's first bytes; raises as :meth:`read` does."""
        return self._inflate(self._member(name), count)

    def _member(self, name: str) -> Member:
        member = self._by_name.get(name)
        if member is None:
            raise Unreadable(f"no longer in {self.path}")
        fault = member.fault()
        if fault is not None:
            raise Unreadable(fault)
        return member

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        # of several the last, which is what is left when they are unpacked
        return {member.name: member for member in self.members}

    def _inflate(self, member: Member, most: int) -> bytes:
        """Return the bytes of a member, ``most`` of them at most."""
        with open_regular(self.path) as file:
            _check_state(self.path, file, self.state)
            file.seek(member.offset)
            header = file.read(_HEADER_SIZE)
            if not header.startswith(_HEADER) or len(header) < _HEADER_SIZE:
                raise Unreadable("broken: the archive's directory points to where it is not")
            name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
            file.seek(name + extra, 1)
            if member.method == zipfile.ZIP_STORED:
                return file.read(min(member.packed, most))
            return _inflated(file, member.packed, most)


def _inflated(file: BinaryIO, packed: int, most: int) -> bytes:
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    pieces: list[bytes] = []
    while packed > 0 and most > 0 and not decompressor.eof:
        piece = file.read(min(packed, 2**16))
        if not piece:
            break
        packed -= len(piece)
        try:
            grown = decompressor.decompress(piece, most)
        except zlib.error as error:
            raise Unreadable(f"broken: {error}") from None
        pieces.append(grown)
        most -= len(grown)
    return b"".join(pieces)


@lru_cache(maxsize=_MOST_ARCHIVES)
def _archive(path: Path, state: tuple[int, ...]) -> ZipArchive:
    """Read an archive's directory. No lock is held, which a process forked meanwhile would wait for in vain."""
    with open_regular(path) as file:
        _check_state(path, file, state)
        return ZipArchive(path, state, _read_directory(path, file))


def _check_state(path: Path, file: BinaryIO, state: tuple[int, ...]) -> None:
    if _state(file) != state:
        raise Unreadable(f"{path} was changed while it was read")


def _state(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read_directory(path: Path, file: BinaryIO) -> tuple[Member, ...]:
    size = zip_directory_size(file)
    if size > _MOST_DIRECTORY:
        raise Unreadable(f"its directory has {size:,} bytes, at most {_MOST_DIRECTORY:,}: make several archives of it")
    try:
        with zipfile.ZipFile(file) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except Exception as error:  # a broken directory makes zipfile raise whatever it stumbles on
        if is_torn_zip(path):
            raise Unreadable("cut short: the end of the archive is missing") from None
        raise Unreadable(f"broken: {' '.join(str(error).split()) or type(error).__name__}") from None
    overlapping = _overlapping(infos)
    return tuple(_member(info, info.header_offset in overlapping) for info in infos)


def _overlapping(infos: Sequence[zipfile.ZipInfo]) -> set[int]:
    """Return the offsets of the headers of members whose bytes another has as well."""
    ordered = sorted(infos, key=lambda info: info.header_offset)
    overlapping: set[int] = set()
    end, last = 0, -1
    for info in ordered:
        if info.header_offset < end:
            overlapping |= {last, info.header_offset}
        reach = info.header_offset + _HEADER_SIZE + len(info.orig_filename) + info.compress_size
        if reach > end:
            end, last = reach, info.header_offset
    return overlapping


def _member(info: zipfile.ZipInfo, overlaps: bool) -> Member:
    return Member(
        _name(info),
        info.header_offset,
        info.compress_size,
        info.file_size,
        info.CRC,
        info.compress_type,
        info.flag_bits,
        info.external_attr >> 16,
        overlaps,
    )


def _name(info: zipfile.ZipInfo) -> str:
    """Return a member's name; one that does not say to be UTF-8, and is, is taken as such, as macOS writes them.

    A backslash parts folders, as old programs of Windows have it. What lies behind a zero byte is kept.
    """
    name = info.orig_filename
    if not info.flag_bits & _IS_UTF8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")
