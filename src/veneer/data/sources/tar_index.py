"""Read what members a tar has and where their bytes lie, from its headers. Nothing is ever unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import BinaryIO

__all__ = ["BrokenTar", "Member", "read_members"]


@dataclass(frozen=True)
class Member:
    """A member of a tar.

    Attributes:
        name: as its header has it.
        offset: of its first byte in the file.
        size: in bytes.
        fault: why it is not read; None: it is a file like others.
        read: reads its bytes, before the next member is asked for.
    """

    name: str
    offset: int
    size: int
    fault: str | None
    read: Callable[[], bytes] = field(compare=False, repr=False)


class BrokenTar(Exception):
    """A tar that ends or breaks off where another member should begin; the message says where."""


def read_members(file: BinaryIO) -> Iterator[Member]:
    """Yield the members of a tar but folders, in order.

    Args:
        file: the tar, from whose beginning is read; nothing is sought for before the last two blocks that were read.

    Raises:
        BrokenTar: it is no tar, or ends before its end; what is before the fault has been yielded.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                vars(tar)["members"] = []  # it would keep all
                if not info.isdir():
                    yield Member(info.name, info.offset_data, info.size, _fault(info), _reader(file, info))
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise BrokenTar(f"no whole tar: {error}") from None
    _check_end(file, tar.offset)


def _reader(file: BinaryIO, info: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        file.seek(info.offset_data)
        return file.read(info.size)

    return read


def _fault(info: tarfile.TarInfo) -> str | None:
    if info.issparse():
        return "a sparse member, whose bytes do not lie in one piece: pack it without --sparse"
    if info.issym() or info.islnk():
        return f"a link to {info.linkname}, and links are not followed"
    if not info.isreg():
        return "a device or pipe, and no file"
    path = PurePosixPath(info.name)
    return "its name leads out of the archive" if path.is_absolute() or ".." in path.parts else None


def _check_end(file: BinaryIO, place: int) -> None:
    """Refuse a tar that goes on with something else than the empty block that ends it: tarfile passes over that."""
    file.seek(place)
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        raise BrokenTar("ends without an empty block, so it may have been cut short")
    if block.strip(b"\0"):
        raise BrokenTar(f"broken at byte {place:,}, where the next member should begin")
