"""Put the trigger into captions, and refuse pictures that have neither caption nor trigger."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from veneer.data.sources.protocol import Entry
from veneer.errors import UserError

__all__ = ["Uncaptioned", "refuse_uncaptioned", "with_trigger"]


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
    """Return captions that all hold the trigger: as words of their own in any case of letters, else after a comma."""
    if trigger is None:
        return tuple(captions)
    contained = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
    complete = [text if contained.search(text) else f"{text}, {trigger}" for text in captions]
    return tuple(dict.fromkeys(complete)) or (trigger,)


def refuse_uncaptioned(source: Path, entries: Sequence[Entry]) -> None:
    """Refuse a source in which a picture has no caption.

    Raises:
        Uncaptioned: names the first such pictures.
    """
    missing = [entry for entry in entries if not entry.captions]
    if not missing:
        return
    first = ", ".join(entry.captions_at for entry in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    captions = "write a .txt beside each"
    remedy = f"{captions}, or give words that stand for a caption: --trigger WORDS"
    if any(entry.path.with_suffix(".caption").is_file() for entry in missing):
        captions = remedy = "captions in .caption files are not read: rename them to .txt"
    what = f"{len(missing)} of {len(entries)} pictures have no caption: {first}{more}"
    raise Uncaptioned(what, where=source, captions=captions, remedy=remedy)
