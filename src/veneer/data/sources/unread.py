"""Find the files that look like captions and are not read, so that none is passed over in silence."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from veneer.data.sources.caption_files import CAPTION_ENDINGS, beside
from veneer.data.sources.json_captions import CAPTION_KEYS
from veneer.data.sources.protocol import Unread
from veneer.data.sources.tree import Tree
from veneer.data.wording import few
from veneer.file_kind import kind_of

__all__ = ["find_unread", "note_unread"]

_TABLES = frozenset(
    {".arrow", ".csv", ".docx", ".feather", ".jsonl", ".ndjson", ".ods", ".odt", ".parquet", ".tsv", ".xls", ".xlsx"}
)
"""Endings of files that hold tables or texts: beside pictures they are captions more often than not."""
_TREES = frozenset({".json", ".json5", ".jsonc", ".toml", ".xml", ".xmp", ".yaml", ".yml"})
"""Endings of files that may be captions or settings: their names or their contents decide."""
_CAPTION_WORD = re.compile(r"capt|meta|tags?\b|prompt|label|annotat|descri", re.IGNORECASE)
_OTHER_TEXT = re.compile(r"(read.?me|licen[cs]e|copying|credits|attribution|changelog|requirements)\b", re.IGNORECASE)
_HEAD = 2**16  # bytes of a file that are looked at


def find_unread(
    tree: Tree, read: Collection[Path], why_not: Callable[[Path], str | None] | None = None
) -> list[Unread]:
    """Return the files that look like captions of pictures and were not read.

    Args:
        tree: the files.
        read: files that were read, as captions or else.
        why_not: why a caption file beside a picture was not read; None: all such were.
    """
    pictures_beside, skipped = beside(tree.pictures), {*tree.pictures, *read}
    unread: list[Unread] = []
    for file in tree.own_files:
        reason = None if file in skipped else _reason(tree, file, pictures_beside(file), why_not)
        if reason is not None:
            unread.append(Unread(file, reason))
    return unread


def _reason(tree: Tree, file: Path, own: Sequence[Path], why_not: Callable[[Path], str | None] | None) -> str | None:
    """Return why a file that looks like captions is not read; None if it looks like something else."""
    ending = file.suffix.lower()
    if ending in CAPTION_ENDINGS:
        if own and why_not is not None:
            return why_not(own[0])
        return None if own or _OTHER_TEXT.match(file.name) else "no picture of this name is beside them"
    is_text = ending in _TABLES or (ending in _TREES and (own or _names_pictures(tree, file)))
    if is_text or (own and _is_text(tree, file)):
        files = f"{', '.join(CAPTION_ENDINGS)}, metadata.jsonl, .csv and .parquet"
        return f"captions are read from {files}, and beside a picture from a .json with {' or '.join(CAPTION_KEYS)}"
    return None


def _names_pictures(tree: Tree, file: Path) -> bool:
    """Check whether a file's name speaks of captions, or its beginning of a picture in its folder or below."""
    if _CAPTION_WORD.search(file.stem):
        return True
    head = tree.head(file, _HEAD).decode("utf-8", "ignore")
    below = [picture for picture in tree.pictures if file.parent in picture.parents]
    return any(picture.name in head for picture in below)


def _is_text(tree: Tree, file: Path) -> bool:
    head = tree.head(file, _HEAD)
    kind = kind_of(head) if head else None
    return kind is not None and kind.category in ("text", "markup")


def note_unread(unread: Iterable[Unread]) -> list[str]:
    """Return a sentence for each reason, with the files."""
    by_reason: dict[str, list[Path]] = {}
    for one in unread:
        by_reason.setdefault(one.reason, []).append(one.path)
    return [f"not read, though they look like captions: {few(paths)} ({why})" for why, paths in by_reason.items()]
