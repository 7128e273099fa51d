"""Folders named as for kohya's scripts: ``10_sks cat`` has ten repeats, and ``sks cat`` where there is no caption.

The scripts read such names in the folder above them, and pass over every other folder and picture there. Here they are
read only where all pictures lie in such folders, at any depth: a lone ``2_side`` among other folders is a name. Numbers
with a leading zero count folders, and those above 999 are years. Pictures of the class have a folder of their own
there, ``reg``, which is not trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from veneer.config.source_config import SourceConfig
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.wording import few

__all__ = ["with_numbered_folders"]

_NUMBERED = re.compile(r"(?P<repeats>[1-9]\d{0,2})_(?P<name>.*)", re.DOTALL)
_OF_CLASS = frozenset({"reg", "regs", "reg_images", "regularisation", "regularization", "class_images"})
"""Names, in small letters, of folders with pictures of the class."""


@dataclass(frozen=True)
class _Folder:
    path: Path
    repeats: int
    name: str

    @classmethod
    def of(cls, path: Path) -> _Folder | None:
        """Return what a folder's name says; None if it is not so named."""
        match = _NUMBERED.fullmatch(path.name)
        return cls(path, int(match["repeats"]), match["name"].strip()) if match else None

    def __str__(self) -> str:
        return f"{self.path} ({self.repeats} repeats{f', {self.name!r}' if self.name else ''})"


def with_numbered_folders(listing: Listing, config: SourceConfig) -> Listing:
    """Return a listing with the repeats and captions that its folders' names say, if all of them do.

    Args:
        listing: of the pictures of a folder or an archive; that of a file which names folders itself is left as it is.
        config: their source.
    """
    root = config.path
    places = dict.fromkeys(entry.path.parent for entry in listing.entries)  # far fewer than pictures
    if not all(place == root or root in place.parents for place in places):
        return listing
    folders = {place: _folder(place, root) for place in places if not _is_of_class(place, root)}
    numbered = [folder for folder in dict.fromkeys(folders.values()) if folder is not None]
    if not numbered:
        return replace(listing, notes=(*listing.notes, *_note_root(root, config.repeats)))
    other = next((place for place, folder in folders.items() if folder is None), None)
    if other is not None:
        first = next(entry.path for entry in listing.entries if entry.path.parent == other)
        note = f"{numbered[0].path}: the number is not read as repeats, since {first} lies in no such folder"
        return replace(listing, notes=(*listing.notes, note))
    of_class = [entry for entry in listing.entries if entry.path.parent not in folders]
    own = ((entry, folders.get(entry.path.parent)) for entry in listing.entries)
    entries = tuple(_completed(entry, folder) for entry, folder in own if folder is not None)
    notes = (*listing.notes, *_notes(numbered), *_note_class(of_class))
    return replace(listing, entries=entries, notes=notes)


def _folder(place: Path, root: Path) -> _Folder | None:
    """Return the outermost folder that is so named on the way to a place."""
    below = (folder for folder in (*reversed(place.parents), place) if root in folder.parents)
    return next((found for folder in below if (found := _Folder.of(folder)) is not None), None)


def _is_of_class(place: Path, root: Path) -> bool:
    return not _OF_CLASS.isdisjoint(part.casefold() for part in place.relative_to(root).parts)


def _completed(entry: Entry, folder: _Folder) -> Entry:
    captions = entry.captions or ((folder.name,) if folder.name else ())
    return replace(entry, repeats=entry.repeats * folder.repeats, captions=captions)


def _notes(folders: Iterable[_Folder]) -> list[str]:
    named = few(list(folders))
    return [
        f"folders are read as kohya's scripts name them, and their names are captions where there is none: {named} "
        "(numbered_folders: false reads neither)"
    ]


def _note_class(of_class: list[Entry]) -> list[str]:
    if not of_class:
        return []
    folder = of_class[0].path.parent
    return [
        f"{len(of_class)} pictures of the class are not trained on, such as those in {folder}: "
        f"data.prior.path={folder} keeps the class, with data.prior.prompt"
    ]


def _note_root(root: Path, repeats: int) -> list[str]:
    """Note a source that is itself so named, whose number would say nothing beside other sources' repeats."""
    folder = _Folder.of(root)
    if folder is None or folder.repeats == repeats:
        return []
    return [f"{root}: the number is not read as repeats; write {{path: ..., repeats: {folder.repeats}}}"]
