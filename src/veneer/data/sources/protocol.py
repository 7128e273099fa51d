"""The protocol of a source of pictures, and the plain data that it gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from veneer.config.schema import SourceConfig
from veneer.data.manifest import Rejected

__all__ = ["Entry", "Listing", "Source", "Unread"]


@dataclass(frozen=True)
class Entry:
    """A picture as its source lists it, not yet opened.

    Attributes:
        path: the file; its bytes are read with ``path.read_bytes()`` alone.
        captions: what its source says of it; may be empty.
        repeats: how often an epoch shows it.
        captions_at: the place to name in a message about its captions, such as ``metadata.jsonl:3``.
        references: of a pair, the files of the pictures that it is made from; else none.
    """

    path: Path
    captions: tuple[str, ...]
    repeats: int = 1
    captions_at: str = ""
    references: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Unread:
    """A file that looks like captions and is not read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Listing:
    """The pictures that a source lists, and those in it that are left out.

    Attributes:
        entries: the pictures.
        rejected: those that are left out, each with its reason.
        notes: what a user may want to know of the source, a sentence each.
        unread: files that look like captions and are not read; :func:`read_source` makes notes of them.
    """

    entries: tuple[Entry, ...]
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()
    unread: tuple[Unread, ...] = ()


class Source(Protocol):
    """A kind of source. It opens no picture while it lists them."""

    def list_pictures(self, config: SourceConfig) -> Listing | None:
        """Return the pictures of a place, in an order that does not change, or None if it is of another kind.

        Args:
            config: the place, and how its captions are read. Its ``repeats`` are none of the source's concern.

        Raises:
            UserError: the place is of this kind, but something in it is at fault.
        """
