"""The protocol of a source of pictures, and the plain data that it gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from veneer.config.source_config import SourceConfig
from veneer.data.location import AT_PATH, Located, Location
from veneer.data.manifest import Rejected
from veneer.data.tags import TagCaption, TagRules

if TYPE_CHECKING:
    from veneer.data.seen import Seen

__all__ = ["Entry", "Listing", "Source", "Unread"]


@dataclass(frozen=True, slots=True)
class Entry(Located):
    """A picture as its source lists it, not yet opened.

    Attributes:
        path: the file, for messages and reports; its bytes are read by its location alone. ``AT_LOCATION``: as that
            says.
        captions: what its source says of it; may be empty.
        repeats: how often an epoch shows it.
        captions_at: the place to name in a message about its captions, such as ``metadata.jsonl:3``.
        references: of a pair, where the pictures lie that it is made from; else none.
        location: where its bytes lie; left out: in the file ``path``.
        weight: how often it is shown beside others, times ``repeats``.
        tags: those of its captions of which each draw shows another order or a part; filled in by
            :func:`read_source`.
        tag_rules: what each draw does to its tags, where its source's own file says it; None: what the config says.
        mask: where the mask lies that says what of it is learned; its own location: in its alpha channel; None: all is.
        seen: what decoding it told, where its source has read it already.
    """

    path: Path
    captions: tuple[str, ...]
    repeats: int = 1
    captions_at: str = ""
    references: tuple[Location, ...] = ()
    location: Location = AT_PATH
    weight: float = 1.0
    tags: tuple[TagCaption, ...] = ()
    tag_rules: TagRules | None = None
    mask: Location | None = None
    seen: Seen | None = None

    def __post_init__(self) -> None:
        """Fill the location or the path in."""
        self._complete()

    def revised(self, **changes: Any) -> Entry:
        """Return the entry with other values, its path left out where it was."""
        return replace(self, **{"path": self.given_path, **changes})


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
        has_masks: whether the source has given its pictures the masks that its config asks for.
    """

    entries: tuple[Entry, ...]
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()
    unread: tuple[Unread, ...] = ()
    has_masks: bool = False


class Source(Protocol):
    """A kind of source. It opens no picture while it lists them."""

    def list_pictures(self, config: SourceConfig) -> Listing | None:
        """Return the pictures of a place, in an order that does not change, or None if it is of another kind.

        Args:
            config: the place, and how its captions are read. Its ``repeats`` and ``weight`` are none of the source's
                concern.

        Raises:
            UserError: the place is of this kind, but something in it is at fault.
        """
