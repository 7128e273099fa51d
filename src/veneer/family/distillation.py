"""Bases that were distilled to paint in few steps: what says so, and what plain training does to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

__all__ = ["warn_of_distillation"]

_DISTILLED = re.compile(
    r"(?:^|[\W_])(?:turbo|schnell|lightning|lcm|hyper[-_]?sd|dmd2?|distill(?:ed)?|klein(?!.*base))(?:$|[\W_])"
)
_UNDONE = re.compile(r"(?:^|[\W_])(?:de|un|non)[-_]?(?:turbo|distill)")
"""In names of bases, in small letters: what tells of a distillation, and of one that was taken back."""


class _Base(Protocol):
    """A base as this depends on it; ``veneer.family.protocol.Family`` is one."""

    @property
    def distilled(self) -> str | None:
        """What plain training does to it, and what to do; None: its files do not say that it is distilled."""


def warn_of_distillation(place: str, base: _Base, training_adapter: Path | None = None) -> str | None:
    """Return one line about a distilled base: what plain training does to it and what to do.

    Args:
        place: the base's folder, file or hub id, whose last part is its name.
        base: the base.
        training_adapter: that is in it while it is trained: with one, there is nothing to warn of.
    """
    what = base.distilled or _told_by_name(place)
    if what is None or training_adapter is not None:
        return None
    return f"{what}; or set adapter.training_adapter to a file that makes up for it while training"


def _told_by_name(place: str) -> str | None:
    name = place.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if not _DISTILLED.search(name.lower()) or _UNDONE.search(name.lower()):
        return None
    return (
        f"by its name, {name}, the base was distilled to paint in few steps, and plain training undoes that, so that "
        "few steps paint blurs; train the base that it was made from, and use the adapter with this one"
    )
