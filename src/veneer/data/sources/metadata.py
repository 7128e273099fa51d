"""A folder or zip with a ``metadata.jsonl``, ``.csv`` or ``.parquet``, as the ``datasets`` library has it.

Each row has ``file_name``, relative to the folder, and ``text``, a caption; in JSON also a list of them. A row of a
pair also has ``reference_file_name``, the picture that the text is to be applied to, or ``reference_file_names``, a
list of several (that library takes any column with such an ending for pictures); ``mask_file_name`` says what of a
picture is learned. A list speaks for its folder and those
below: pictures that none of its rows names are left out. Where no list speaks, captions are read from the files beside
each picture.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

from veneer.config.source_config import SourceConfig
from veneer.data.location import Location
from veneer.data.manifest import Rejected
from veneer.data.sources.caption_files import CaptionFiles
from veneer.data.sources.filesystem import FileSystem
from veneer.data.sources.json_captions import refuse_half_characters
from veneer.data.sources.names import NameIndex
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.tree import Tree
from veneer.data.sources.unread import find_unread
from veneer.data.sources.zip_filesystem import is_zip
from veneer.data.table_file import import_pyarrow
from veneer.data.unreadable import Unreadable
from veneer.data.wording import few
from veneer.errors import UserError

__all__ = ["MetadataSource"]

_OTHER_NAMES = {"file_name": ("filename", "file", "image", "path"), "text": ("caption", "captions", "prompt")}
_REFERENCE, _REFERENCES = "reference_file_name", "reference_file_names"
_OTHER_REFERENCES = re.compile(
    r"(source|control|cond|condition|conditioning|edit|kontext|original|input|reference|before)"
    r"(_(image|images|path|file|file_name|file_names))?(_\d+)?"
)
"""Columns that other trainers have for the pictures that an edit starts from."""
_MASK = "mask_file_name"
_OTHER_MASKS = re.compile(r"mask(_(image|path|file))?")
"""Columns that others have for masks."""
_EXAMPLE = '{"file_name": "a.png", "text": "a cat"}'
_DELIMITERS = ",;\t"

Row: TypeAlias = tuple[str, dict[str, Any]]
"""The place to name in messages, and the values by the columns' names."""
Entries: TypeAlias = Mapping[Path, Sequence[Entry]]
"""The pictures that lists name, each with one entry for each set of references and mask."""
Lists: TypeAlias = Mapping[Path, Entries]
"""For each folder that has lists, what they name."""


class MetadataSource:
    """A folder or zip of pictures in which, or below which, a ``metadata.jsonl`` or ``metadata.csv`` lists some."""

    def list_pictures(self, config: SourceConfig) -> Listing | None:
        """List the pictures of a folder and of those below it; None if no list is among their files."""
        if not (config.path.is_dir() or is_zip(config.path)):
            return None
        tree = Tree.walk(config.path, config.follow_links)
        named = [file for file in tree.own_files if file.name.lower() in _READERS]
        files = [file for file in named if tree.filesystem.is_file(file)]
        return _Lists(tree, files).list_pictures(config) if files else None


@dataclass(frozen=True)
class _Lists:
    """The lists of a tree."""

    tree: Tree
    files: list[Path]

    def list_pictures(self, config: SourceConfig) -> Listing:
        """List the pictures of the tree, with those that a list alone names.

        Raises:
            UserError: a list or a caption file is at fault, or there is no picture.
        """
        captions = CaptionFiles(self.tree, config.captions)
        listing = self.tree.list_pictures(lambda picture: self._entry_or_reason(picture, captions))
        # a list may name pictures whose ending says nothing, or whose name is hidden
        listed = {path: entries for named in self.entries.values() for path, entries in named.items()}
        walked = set(self.tree.pictures)
        others = [entry for path, entries in listed.items() if path not in walked for entry in entries]
        read = [*self.files, *listed, *self._references, *captions.read]
        unread = find_unread(self.tree, read, self._why_not)
        notes = (*listing.notes, *captions.notes(), *self._note_several(), *self._note_other_references())
        good, refused = self._readable([*listing.entries, *others])
        rejected = (*listing.rejected, *refused, *self.tree.find_misnamed(read))
        return replace(listing, entries=good, rejected=rejected, notes=notes, unread=tuple(unread))

    @cached_property
    def entries(self) -> Lists:
        entries: dict[Path, dict[Path, list[Entry]]] = {}
        for file in self.files:
            _read_list(self.tree, file, entries.setdefault(file.parent, {}), self._columns)
        return entries

    def _readable(self, entries: Sequence[Entry]) -> tuple[tuple[Entry, ...], list[Rejected]]:
        """Part entries from those of which a picture, a reference or a mask may not be read."""
        good: list[Entry] = []
        refused: list[Rejected] = []
        for entry in entries:
            places = [("", entry.location), *(("its reference ", one) for one in entry.references)]
            places += [("its mask ", entry.mask)] if entry.mask else []
            faults = ((whose, place.path, self.tree.filesystem.fault(place.path)) for whose, place in places)
            reasons = [f"{whose}{path}: {fault}" if whose else fault for whose, path, fault in faults if fault]
            if reasons:
                refused.append(Rejected(entry.path, reasons[0]))
            else:
                good.append(entry)
        return tuple(good), refused

    @cached_property
    def _columns(self) -> dict[str, str]:
        """The columns of the lists, each with the place where it was met first; filled when the lists are read."""
        return {}

    @cached_property
    def _references(self) -> frozenset[Path]:
        """The pictures that lists name as references or masks of others."""
        named = (entry for entries in self.entries.values() for several in entries.values() for entry in several)
        return frozenset(one.path for entry in named for one in (*entry.references, entry.mask) if one is not None)

    def _entry_or_reason(self, picture: Path, captions: CaptionFiles) -> Sequence[Entry] | str:
        """Return the picture as the nearest list that names it has it, or why it is left out.

        One that is named only as the reference of others is no picture to train on, and that is no reason to tell.
        """
        above = [self.entries[folder] for folder in picture.parents if folder in self.entries]
        if not above:
            return captions.describe(picture)
        names = " or ".join(dict.fromkeys(file.name for file in self.files if file.parent in picture.parents))
        reason = () if picture in self._references else f"no line of {names} names it"
        return next((listed[picture] for listed in above if picture in listed), reason)

    def _why_not(self, picture: Path) -> str | None:
        lists = [file for file in self.files if file.parent in picture.parents]
        return f"{few(lists)} speaks for their pictures" if lists else None

    def _note_several(self) -> list[str]:
        several = [file for file in self.files if sum(other.parent == file.parent for other in self.files) > 1]
        return [f"several lists for one folder, all of which are read: {few(several)}"] if several else []

    def _note_other_references(self) -> list[str]:
        """Note columns that look as if they named the pictures that edits start from, and are not read."""
        other = {} if self._references else {_REFERENCE: (_OTHER_REFERENCES, "if its pictures are to be edited")}
        other[_MASK] = (_OTHER_MASKS, "if it says what of a picture is learned")
        return [
            f"{where}: the column {name!r} is not read; call it {ours!r} {why}"
            for ours, (names, why) in other.items()
            for name, where in self._columns.items()
            if names.fullmatch(name)
        ]


def _read_list(tree: Tree, path: Path, entries: dict[Path, list[Entry]], columns: dict[str, str]) -> None:
    """Add the pictures that a list names; several rows for one picture, and its references, are several captions."""
    names = _Names(tree.filesystem, path.parent)
    for where, row in _READERS[path.name.lower()](tree, path):
        for name in row:
            columns.setdefault(name, where)
        picture = _named_file(names, _field(row, "file_name", where), "file_name", where)
        references = _reference_files(names, row, where)
        mask = tree.location(_named_file(names, row[_MASK], _MASK, where)) if row.get(_MASK) else None
        captions = _captions(row, where)
        known = entries.setdefault(picture, [])
        earlier = next((entry for entry in known if (entry.references, entry.mask) == (references, mask)), None)
        if earlier is not None:
            known.remove(earlier)
            captions = tuple(dict.fromkeys((*earlier.captions, *captions)))
        place = tree.location(picture)
        known.append(Entry(picture, tuple(dict.fromkeys(captions)), 1, where, references, location=place, mask=mask))


def _json_rows(tree: Tree, path: Path) -> Iterator[Row]:
    """Yield each line's object."""
    text = tree.read_text(path)
    # not splitlines: a caption may hold U+2028, which JSON leaves as it is
    for number, line in enumerate(text.split("\n"), start=1):
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


def _csv_rows(tree: Tree, path: Path) -> Iterator[Row]:
    """Yield each row of a table whose first line names the columns, which a comma, semicolon or tab parts."""
    text = tree.read_text(path)
    header = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            where = f"{path}:{rows.line_num}"
            raise UserError(f"not CSV: {error}", code="data.metadata_not_csv", where=where) from None
        where = f"{path}:{rows.line_num}"
        if None in row or None in row.values():
            what = f"has {'more' if None in row else 'fewer'} values than the first line has names"
            remedy = f"put a caption that holds {delimiter!r} into double quotes"
            raise UserError(what, code="data.metadata_not_csv", where=where, remedy=remedy)
        yield where, {name.strip(): value for name, value in row.items()}


def _parquet_rows(tree: Tree, path: Path) -> Iterator[Row]:
    """Yield each row of a parquet table."""
    arrow, parquet = import_pyarrow(path), import_pyarrow(path, "pyarrow.parquet")
    try:
        content = arrow.BufferReader(tree.location(path).read())
        number = 0
        for batch in parquet.ParquetFile(content).iter_batches(use_threads=False):
            for row in batch.to_pylist():
                yield f"{path}[{number}]", row
                number += 1
    except (arrow.ArrowException, Unreadable, OSError, ValueError) as error:
        what = f"cannot be read: {' '.join(str(error).split())[:200]}"
        raise UserError(what, code="data.broken_table", where=path) from None


_READERS: Mapping[str, Callable[[Tree, Path], Iterator[Row]]] = {
    "metadata.jsonl": _json_rows,
    "metadata.csv": _csv_rows,
    "metadata.parquet": _parquet_rows,
}
"""How a list of each name, in small letters, is read."""


def _field(row: dict[str, Any], name: str, where: str) -> Any:
    if name in row:
        return row[name]
    likely = [*filter(row.__contains__, _OTHER_NAMES[name]), *get_close_matches(name, row, n=1)]
    remedy = f"call {likely[0]!r} {name!r}" if likely else None
    raise UserError(f"no {name!r}", code="data.metadata_field_missing", where=where, remedy=remedy)


class _Names:
    """The files of a folder and those below it, by the names that a list may give them.

    Args:
        filesystem: that of the list.
        folder: of the list.
    """

    def __init__(self, filesystem: FileSystem, folder: Path) -> None:
        self.filesystem, self._folder = filesystem, folder
        self._indexes: dict[Path, NameIndex[Path]] = {}

    def find(self, parts: tuple[str, ...]) -> Path | None:
        """Return the file of a name as its folder spells it; None if there is none, or several of like names."""
        found = [self._folder]
        for part in parts:
            found = self._index(found[0]).find(part) if len(found) == 1 and self.filesystem.is_folder(found[0]) else []
        return found[0] if len(found) == 1 and self.filesystem.is_file(found[0]) else None

    def _index(self, folder: Path) -> NameIndex[Path]:
        if folder not in self._indexes:
            self._indexes[folder] = NameIndex((path.name, path) for path in self.filesystem.children(folder))
        return self._indexes[folder]


def _reference_files(names: _Names, row: dict[str, Any], where: str) -> tuple[Location, ...]:
    """Return the references of a row; none where it names none."""
    column = next((name for name in (_REFERENCE, _REFERENCES) if row.get(name)), None)
    if column is None:
        return ()
    named = row[column]
    if isinstance(named, str) and named.startswith("["):  # a table can hold a list as JSON alone
        named = _json_list(named, column, where)
    listed = named if isinstance(named, list) else [named]
    return tuple(names.filesystem.location(_named_file(names, name, column, where)) for name in listed)


def _json_list(text: str, column: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = f"{column!r} begins as a list, and is not JSON: {error}"
        raise UserError(what, code="data.metadata_not_json", where=where) from None


def _named_file(names: _Names, name: object, column: str, where: str) -> Path:
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError(f"{column!r} should be the name of a file", code="data.metadata_file_name", where=where)
    # a backslash is a letter of a name where there is such a file, else it parts folders, as on Windows
    for path in (PurePosixPath(name), PureWindowsPath(name) if "\\" in name else PurePosixPath(name)):
        if path.is_absolute() or path.drive or ".." in path.parts:
            raise UserError(f"{name} leads out of its folder", code="data.metadata_file_outside", where=where)
        picture = names.find(path.parts)
        if picture is not None:
            return picture
    raise UserError(f"no such file: {name}", code="data.metadata_file_missing", where=where)


def _captions(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """Return a row's caption or captions; none if the text is null or empty."""
    text = _field(row, "text", where)
    captions = text if isinstance(text, list) else [] if text is None else [text]
    if not all(isinstance(caption, str) for caption in captions):
        what = "'text' should be a caption or a list of captions"
        raise UserError(what, code="data.metadata_caption", where=where)
    for caption in captions:
        refuse_half_characters(caption, "text", where)
    return tuple(caption.strip() for caption in captions if caption.strip())
