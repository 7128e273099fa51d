"""A folder with a ``metadata.jsonl``, as the ``datasets`` library has it.

Each line is an object with ``file_name``, relative to the folder, and ``text``, a caption or a list of them. A list
speaks for its folder and those below: pictures that none of its lines names are left out. Where no list speaks,
captions are read from a ``.txt`` beside each picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from veneer.data.sources.folder import entry_with_text_beside
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.tree import Tree, is_picture
from veneer.errors import UserError
from veneer.files import read_utf8

__all__ = ["MetadataSource"]

_METADATA = "metadata.jsonl"
_OTHER_NAMES = {"file_name": ("filename", "file", "image", "path"), "text": ("caption", "captions", "prompt")}
_EXAMPLE = '{"file_name": "a.png", "text": "a cat"}'

Lists = Mapping[Path, Mapping[Path, Entry]]
"""For each folder that has a list, the pictures that the list names."""


class MetadataSource:
    """A folder of pictures in which, or below which, a ``metadata.jsonl`` lists some."""

    def list_pictures(self, path: Path) -> Listing | None:
        """List the pictures of a folder and of those below it; None if no list is among their files."""
        if not path.is_dir():
            return None
        tree = Tree.walk(path)
        lists = {file.parent: _read_list(file) for file in tree.files if file.name == _METADATA}
        if not lists:
            return None
        listing = tree.list_pictures(lambda picture: _entry_or_reason(picture, lists))
        # a list may name pictures whose ending says nothing
        others = [entry for listed in lists.values() for entry in listed.values() if not is_picture(entry.path)]
        return Listing((*listing.entries, *{entry.path: entry for entry in others}.values()), listing.rejected)


def _entry_or_reason(picture: Path, lists: Lists) -> Entry | str:
    """Return the picture as the nearest list that names it has it, or why it is left out."""
    above = [lists[parent] for parent in picture.parents if parent in lists]
    if not above:
        return entry_with_text_beside(picture)
    return next((listed[picture] for listed in above if picture in listed), f"no line of {_METADATA} names it")


def _read_list(path: Path) -> dict[Path, Entry]:
    """Read the pictures that a list names; several lines for one picture are several captions."""
    entries: dict[Path, Entry] = {}
    for where, row in _rows(path):
        picture = _named_file(path.parent, row, where)
        captions = _captions(row, where)
        earlier = entries[picture].captions if picture in entries else ()
        entries[picture] = Entry(picture, tuple(dict.fromkeys((*earlier, *captions))), captions_at=where)
    return entries


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line's object, with the place to name in messages."""
    # not splitlines: a caption may hold U+2028, which JSON leaves as it is
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"not JSON: {error}", code="data.metadata_not_json", where=where) from None
        if not isinstance(row, dict):
            raise UserError(f"should be an object, such as {_EXAMPLE}", code="data.metadata_not_object", where=where)
        yield where, row


def _field(row: dict[str, Any], name: str, where: str) -> Any:
    if name in row:
        return row[name]
    likely = [*filter(row.__contains__, _OTHER_NAMES[name]), *get_close_matches(name, row, n=1)]
    remedy = f"call {likely[0]!r} {name!r}" if likely else None
    raise UserError(f"no {name!r}", code="data.metadata_field_missing", where=where, remedy=remedy)


def _named_file(folder: Path, row: dict[str, Any], where: str) -> Path:
    name = _field(row, "file_name", where)
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError("'file_name' should be the name of a file", code="data.metadata_file_name", where=where)
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{name} leads out of its folder", code="data.metadata_file_outside", where=where)
    picture = folder / parts
    if not picture.is_file():
        raise UserError(f"no such file: {name}", code="data.metadata_file_missing", where=where)
    return picture


def _captions(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """Return a row's caption or captions; none if the text is null or empty."""
    text = _field(row, "text", where)
    captions = text if isinstance(text, list) else [] if text is None else [text]
    if not all(isinstance(caption, str) for caption in captions):
        what = "'text' should be a caption or a list of captions"
        raise UserError(what, code="data.metadata_caption", where=where)
    for caption in captions:
        _refuse_half_characters(caption, where)
    return tuple(caption.strip() for caption in captions if caption.strip())


def _refuse_half_characters(caption: str, where: str) -> None:
    """Refuse half of a UTF-16 pair, which JSON can write and UTF-8 cannot: no tokenizer takes it, and no file."""
    half = re.search(r"[\ud800-\udfff]", caption)
    if half:
        what = f"'text' has half a character, \\u{ord(half[0]):x}"
        remedy = "write the caption anew, e.g. with ensure_ascii=False"
        raise UserError(what, code="data.half_character", where=where, remedy=remedy)
