"""Masks of the pictures that a source lists: in their alpha channels, in files beside them, or in a folder.

OneTrainer calls the mask of ``a.png`` ``a-masklabel.png``; ``a.mask.png``, ``a_mask.png`` and ``a-mask.png`` are other
tools' names. kohya's scripts, ai-toolkit, diffusion-pipe and SimpleTuner have a folder of masks of the pictures' names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

from veneer.data.manifest import Rejected
from veneer.data.sources.names import NameIndex, pictures_named
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.tree import Tree
from veneer.data.wording import few
from veneer.errors import UserError

__all__ = ["Masks", "with_masks"]

Masks: TypeAlias = Literal["alpha", "beside"] | Path | None
"""Where the masks of a source are; None: only those are read that its own list names."""

_LABEL = re.compile(r"(?P<picture>.+)-(masklabel|condlabel)", re.IGNORECASE)
"""What belongs to a picture by OneTrainer's names, and is no picture itself."""
_MASK = re.compile(r"(?P<picture>.+)(-masklabel|[._-]mask)", re.IGNORECASE)
"""A mask beside a picture."""


def with_masks(listing: Listing, source: Path, masks: Masks, follow_links: bool = False) -> Listing:
    """Return a listing in which each picture has its mask, and no mask is a picture.

    A picture without a mask is learned whole.

    Args:
        listing: of the pictures.
        source: their place.
        masks: where theirs are.
        follow_links: whether links that lead out of a folder of masks are read.

    Raises:
        UserError: a list names masks and the source has others, or a folder of masks is at fault.
    """
    if listing.has_masks:
        return listing
    if masks is not None:
        _refuse_twice(listing, source)
    if masks == "alpha":
        entries = tuple(replace(entry, mask=entry.location) for entry in listing.entries)
        return _without_labels(replace(listing, entries=entries))
    if masks == "beside":
        return _without_labels(_with_masks_beside(listing))
    listing = _without_labels(listing)
    return _note_names(listing) if masks is None else _with_masks_in(listing, source, Tree.walk(masks, follow_links))


def _refuse_twice(listing: Listing, source: Path) -> None:
    named = [entry for entry in listing.entries if entry.mask is not None]
    if named:
        what = f"{named[0].captions_at} names masks already"
        raise UserError(what, code="data.masks_twice", where=source, remedy="leave out one of the two")


def _with_masks_beside(listing: Listing) -> Listing:
    """Give pictures the masks beside them, be these listed as pictures, or left out because no list names them."""
    places = {one.path: one.location for one in listing.rejected if one.location is not None}
    places |= {entry.path: entry.location for entry in listing.entries}
    found = _of_pictures(places, listing.entries, _MASK)
    of_picture: dict[Path, list[Path]] = {}
    for mask, picture in found.items():
        of_picture.setdefault(picture, []).append(mask)
    entries: list[Entry] = []
    rejected = [one for one in listing.rejected if one.path not in found]
    for entry in listing.entries:
        masks = of_picture.get(entry.path, [])
        if len(masks) > 1:
            rejected.append(Rejected(entry.path, f"several masks beside it: {few(masks)}"))
        elif entry.path not in found:
            entries.append(replace(entry, mask=places[masks[0]] if masks else None))
    return replace(listing, entries=tuple(entries), rejected=tuple(rejected))


def _without_labels(listing: Listing) -> Listing:
    """Leave out what is named as OneTrainer names masks and conditioning pictures, and belongs to a picture."""
    found = _of_pictures(_likely(listing.entries), listing.entries, _LABEL)
    if not found:
        return listing
    entries = tuple(entry for entry in listing.entries if entry.path not in found)
    reasons = [Rejected(label, f"a mask or conditioning picture of {found[label].name}: {_HOW}") for label in found]
    return replace(listing, entries=entries, rejected=(*listing.rejected, *reasons))


_HOW = "masks are read with masks: beside, and such pictures are not trained on"


def _note_names(listing: Listing) -> Listing:
    """Note pictures that are named as masks of others and are trained on as pictures."""
    found = _of_pictures(_likely(listing.entries), listing.entries, _MASK)
    if not found:
        return listing
    note = f"named as masks of other pictures, and learned as pictures (masks: beside reads them): {few([*found])}"
    return replace(listing, notes=(*listing.notes, note))


def _likely(entries: Iterable[Entry]) -> list[Path]:
    """Return the paths of those in whose names a word is that masks and labels have: of a million, few."""
    names = ((entry, (entry.location.member or entry.location.container.name).lower()) for entry in entries)
    return [entry.path for entry, name in names if "mask" in name or "condlabel" in name]


def _of_pictures(files: Iterable[Path], entries: Iterable[Entry], names: re.Pattern[str]) -> Mapping[Path, Path]:
    """Return those of some files whose name is that of a listed picture with an ending, each with the picture."""
    named = {file: match["picture"] for file in files if (match := names.fullmatch(file.stem))}
    if not named:
        return {}
    find = pictures_named(entry.path for entry in entries)
    found = {file: find(file.parent, picture) for file, picture in named.items()}
    return {file: pictures[0] for file, pictures in found.items() if pictures}


def _with_masks_in(listing: Listing, source: Path, tree: Tree) -> Listing:
    """Give pictures the masks of their names in a folder, which may lie among the pictures."""
    folder = tree.folder
    index = NameIndex((_name(path, folder), path) for path in tree.pictures)
    entries: list[Entry] = []
    rejected = [one for one in listing.rejected if folder not in one.path.parents]
    for entry in listing.entries:
        if folder in entry.path.parents:
            continue
        masks = index.find(_name(entry.path, source))
        if len(masks) > 1:
            rejected.append(Rejected(entry.path, f"several masks of its name: {few(masks)}"))
        elif masks and (fault := tree.filesystem.fault(masks[0])):
            rejected.append(Rejected(entry.path, f"its mask {masks[0]}: {fault}"))
        else:
            entries.append(replace(entry, mask=tree.location(masks[0]) if masks else None))
    return replace(listing, entries=tuple(entries), rejected=tuple(rejected))


def _name(path: Path, folder: Path) -> str:
    """Return a file's path within a folder, without its ending; of one elsewhere its name."""
    inside = path.relative_to(folder) if folder in path.parents else Path(path.name)
    return inside.with_suffix("").as_posix()
