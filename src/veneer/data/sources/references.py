"""Folders of references beside a folder of pictures: each has the name of the picture that is made from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from veneer.config.source_config import SourceConfig
from veneer.data.location import Location
from veneer.data.manifest import Rejected
from veneer.data.sources.names import NameIndex
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.tree import Tree
from veneer.data.sources.zip_filesystem import is_zip
from veneer.errors import UserError

__all__ = ["with_references"]


def with_references(listing: Listing, config: SourceConfig) -> Listing:
    """Return a listing in which each picture has the reference of its name in each of some folders.

    ``poses/a.jpg`` in the folder of pictures has ``poses/a.png`` in that of references, whatever the endings. A picture
    that lacks one is left out. The folders may lie among the pictures, and are no pictures to train on then.

    Args:
        listing: of the pictures.
        config: their folder, and those of references, in the order in which a base is shown them.

    Raises:
        UserError: the pictures are not in one folder, have references already, or a folder of references is at fault.
    """
    pictures, folders = config.path, config.references
    entries = [entry for entry in listing.entries if not _is_below(entry.path, folders)]
    _check(entries, pictures, folders[0])
    indexes = [_index(folder, config.follow_links) for folder in folders]
    found: list[Entry] = []
    rejected = [one for one in listing.rejected if not _is_below(one.path, folders)]
    for entry in entries:
        references = [index.find(_name(entry.path, pictures)) for index in indexes]
        wrong = next((pair for pair in zip(references, folders, strict=True) if len(pair[0]) != 1), None)
        if wrong is None:
            found.append(replace(entry, references=tuple(files[0] for files in references)))
        else:
            how_many = "several references" if wrong[0] else "no reference"
            rejected.append(Rejected(entry.path, f"{how_many} of its name in {wrong[1]}"))
    return replace(listing, entries=tuple(found), rejected=tuple(rejected))


def _check(entries: Sequence[Entry], pictures: Path, references: Path) -> None:
    if not (pictures.is_dir() or is_zip(pictures)):
        what = f"{pictures} is a file, and references are found by the names in a folder or a zip"
        remedy = "name its folders in data.sources, each with its references"
        raise UserError(what, code="data.references_of_file", where=references, remedy=remedy)
    twice = [entry for entry in entries if entry.references]
    if twice:
        what = f"{twice[0].captions_at} names references already"
        remedy = "leave out one of the two"
        raise UserError(what, code="data.references_twice", where=references, remedy=remedy)


def _index(folder: Path, follow_links: bool) -> NameIndex[Location]:
    tree = Tree.walk(folder, follow_links)
    return NameIndex((_name(path, folder), tree.location(path)) for path in tree.readable)


def _name(path: Path, folder: Path) -> str:
    """Return a file's path within a folder, without its ending."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _is_below(path: Path, folders: Iterable[Path]) -> bool:
    return any(folder in path.parents for folder in folders)
