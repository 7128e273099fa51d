"""Put the trigger into captions, and refuse pictures that have neither caption nor trigger."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from pathlib import Path

from veneer.data.sources.names import composed
from veneer.data.sources.protocol import Listing
from veneer.data.sources.unread import note_unread
from veneer.data.wording import few
from veneer.errors import UserError

__all__ = ["Uncaptioned", "refuse_uncaptioned", "with_trigger"]

_SEPARATORS = (
    string.whitespace
    + ",.;"
    + "\u00a0\u2003\u3000"
    + "\uff0c\uff0e\uff1b\u3001\u3002\uff64\uff61"
    + "\u060c\u061b\u06d4\u0964"
)
"""Spaces, commas, full stops and semicolons: ASCII, fullwidth, ideographic, Arabic and Devanagari."""


class Uncaptioned(UserError):
    """The mistake that pictures have no caption, and no trigger stands for one.

    Args:
        what: how many, and the first ones.
        where: their folder.
        captions: what to do so that they have some; for callers that take no trigger.
        remedy: what to do.
    """

    def __init__(self, what: str, *, where: object, captions: str, remedy: str) -> None:
        self.captions = captions
        super().__init__(what, code="data.no_caption", where=where, remedy=remedy)

    def without_trigger(self) -> UserError:
        """Return the same mistake for callers that take no trigger, which its remedy then leaves out."""
        return UserError(self.what, code=self.code, where=self.where, remedy=self.captions)


def with_trigger(captions: Iterable[str], trigger: str | None) -> tuple[str, ...]:
    """Return captions that all hold the trigger: as words of their own in any case of letters, else after a comma.

    The comma takes the place of what a caption ends in: ``1girl, solo,`` becomes ``1girl, solo, trigger``.
    """
    if trigger is None:
        return tuple(captions)
    # an accented letter may be one character or two
    contained = re.compile(rf"(?<!\w){re.escape(composed(trigger))}(?!\w)", re.IGNORECASE)
    complete = [text if contained.search(composed(text)) else _joined(text, trigger) for text in captions]
    return tuple(dict.fromkeys(complete)) or (trigger,)


def _joined(caption: str, trigger: str) -> str:
    kept = caption.rstrip(_SEPARATORS)
    return f"{kept}, {trigger}" if kept else trigger


def refuse_uncaptioned(source: Path, listing: Listing) -> None:
    """Refuse a source in which a picture has no caption.

    Raises:
        Uncaptioned: names the first such pictures, and the files that may be meant as their captions.
    """
    missing = [entry.captions_at for entry in listing.entries if not entry.captions]
    if not missing:
        return
    captions = "write a .txt beside each"
    if listing.unread:
        captions += f" ({'; '.join(note_unread(listing.unread))})"
    remedy = f"{captions}, or give words that stand for a caption: --trigger WORDS"
    what = f"{len(missing)} of {len(listing.entries)} pictures have no caption: {few(missing)}"
    raise Uncaptioned(what, where=source, captions=captions, remedy=remedy)
