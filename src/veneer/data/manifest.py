"""From a folder to a list: which pictures there are, and what is said of each. No picture is opened here.

Two conventions. A folder with ``metadata.jsonl`` (that of the ``datasets`` library): each line has ``file_name``,
relative to the folder, and ``text``, a caption or a list of them; pictures that no line names are left out and
said to be. Else a ``.txt`` beside each picture, in which each line is a caption of its own. Subfolders are read
too, and a ``metadata.jsonl`` speaks for its folder and those below. Names that begin with a dot are passed over.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from veneer.config.document import read_utf8
from veneer.config.schema import SourceConfig
from veneer.errors import UserError

__all__ = [
    "EXTENSIONS",
    "Entry",
    "Listing",
    "Manifest",
    "Rejected",
    "Sample",
    "Uncaptioned",
    "content_id",
    "find_pictures",
    "read_folder",
    "with_trigger",
]

EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Endings of the pictures that are read, in small letters."""
_UNREADABLE = frozenset({".arw", ".cr2", ".dng", ".heic", ".heif", ".jxl", ".nef", ".svg"})
"""Endings of pictures that people have and no decoder here reads: they are named, not passed over in silence."""
METADATA = "metadata.jsonl"
RUN = "config.yaml"
"""What a run leaves in its folder; pictures below it were painted, and training on them again would be a mistake."""


@dataclass(frozen=True)
class Sample:
    """One picture that can be trained on. Plain data, no pixels.

    Attributes:
        id: hash of the file's bytes, so that it is the same wherever the picture lies.
        path: the file.
        captions: what may be said of it, at least one, each with the trigger.
        width: in pixels, upright, i.e. after the rotation that its EXIF asks for.
        height: likewise.
        repeats: how often an epoch shows it.
    """

    id: str
    path: Path
    captions: tuple[str, ...]
    width: int
    height: int
    repeats: int

    def __hash__(self) -> int:
        """Its id's, which is quick; equal samples have equal ids."""
        return hash(self.id)


@dataclass(frozen=True)
class Rejected:
    """A picture that is left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Manifest:
    """Pictures that can be used, and those that cannot."""

    samples: tuple[Sample, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    def fingerprint(self) -> str:
        """A hash of all that training sees: contents, captions, repeats; neither paths nor their order."""
        lines = sorted(json.dumps([sample.id, sample.captions, sample.repeats]) for sample in self.samples)
        return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())

    def without(self, others: Manifest) -> Manifest:
        """These less pictures of the same bytes among the others."""
        ids = {sample.id for sample in others.samples}
        return Manifest(tuple(sample for sample in self.samples if sample.id not in ids), self.rejected)


class Uncaptioned(UserError):
    """Pictures have no caption, and no trigger stands for one.

    Args:
        what: how many, and the first ones.
        where: their folder.
        captions: what to do so that they have some; for callers that take no trigger.
        remedy: what to do.
    """

    def __init__(self, what: str, *, where: object, captions: str, remedy: str) -> None:
        self.captions = captions
        super().__init__(what, where=where, remedy=remedy)

    def without_trigger(self) -> UserError:
        """The same to those who cannot give a trigger."""
        return UserError(self.what, where=self.where, remedy=self.captions)


@dataclass(frozen=True)
class Entry:
    """A picture as its folder lists it; nobody has looked at it yet."""

    path: Path
    captions: tuple[str, ...]
    repeats: int


@dataclass(frozen=True)
class Listing:
    """What a folder lists, and the pictures in it that it leaves out."""

    entries: tuple[Entry, ...]
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class _Said:
    """The captions of one picture, and where they stand."""

    captions: tuple[str, ...]
    where: str


def content_id(content: bytes) -> str:
    """The id of a file's bytes: XXH3, 128 bits, in hex."""
    return xxhash.xxh3_128_hexdigest(content)


def read_folder(source: SourceConfig, trigger: str | None) -> Listing:
    """List a folder's pictures with their captions, sorted by path.

    Raises:
        Uncaptioned: a caption is missing and no trigger can stand for it.
        UserError: there is no such folder or no picture in it, or a caption cannot be read.
    """
    files = _files_below(source.path)
    pictures = [path for path in files if _is_picture(path)]
    if not pictures:
        remedy = f"endings that are read: {' '.join(sorted(EXTENSIONS))}"
        raise UserError("no picture in this folder", where=source.path, remedy=remedy)
    lists = {path.parent: _read_metadata(path) for path in files if path.name == METADATA}
    runs = {path.parent for path in files if path.name == RUN} - {source.path}
    said, rejected = _captions_of(pictures, lists, runs)
    if trigger is None:
        _refuse_uncaptioned(source.path, said)
    entries = [Entry(path, with_trigger(found.captions, trigger), source.repeats) for path, found in said.items()]
    return Listing(tuple(entries), tuple(rejected))


def with_trigger(captions: Iterable[str], trigger: str | None) -> tuple[str, ...]:
    """Captions that all hold the trigger: as words of their own in any case of letters, else after a comma."""
    if trigger is None:
        return tuple(captions)
    contained = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
    held = [text if contained.search(text) else f"{text}, {trigger}" for text in captions]
    return tuple(dict.fromkeys(held)) or (trigger,)


def find_pictures(folder: Path) -> list[Path]:
    """Files below a folder that should be pictures by their ending, sorted by path.

    Raises:
        UserError: the folder does not exist, is a file, or may not be read.
    """
    return [path for path in _files_below(folder) if path.suffix.lower() in EXTENSIONS]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS | _UNREADABLE


def _files_below(folder: Path) -> list[Path]:
    if not folder.exists():
        raise UserError("no such folder", where=folder)
    if not folder.is_dir():
        raise UserError("is a file, but should be a folder of pictures", where=folder)

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot be read: {error.strerror}", where=error.filename)

    found: list[Path] = []
    seen: set[str] = set()
    for here, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(here)
        # a link to a folder is followed once, so that one to its own parent ends
        below[:] = sorted(name for name in below if not _is_hidden(name) and real not in seen)
        found += [Path(here, name) for name in names if not _is_hidden(name) and real not in seen]
        seen.add(real)
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _is_hidden(name: str) -> bool:
    """Also what macOS puts into zip files beside each picture."""
    return name.startswith(".") or name == "__MACOSX"


def _captions_of(
    pictures: Sequence[Path], lists: Mapping[Path, dict[Path, _Said]], runs: Set[Path]
) -> tuple[dict[Path, _Said], list[Rejected]]:
    """What is said of each picture, and the pictures that are left out."""
    said: dict[Path, _Said] = {}
    rejected: list[Rejected] = []
    for picture in pictures:
        above = [lists[parent] for parent in picture.parents if parent in lists]
        if picture.suffix.lower() in _UNREADABLE:
            rejected.append(Rejected(picture, f"{picture.suffix} files are not read: save it as PNG or JPEG"))
        elif not runs.isdisjoint(picture.parents):
            rejected.append(Rejected(picture, f"in the results of a run ({RUN} is beside it)"))
        elif not above:
            said[picture] = _read_text_beside(picture)
        elif any(picture in listed for listed in above):
            said[picture] = next(listed[picture] for listed in above if picture in listed)
        else:
            rejected.append(Rejected(picture, f"no line of {METADATA} names it"))
    for listed in lists.values():
        # a list may name pictures whose ending says nothing
        said |= {picture: found for picture, found in listed.items() if not _is_picture(picture)}
    return said, rejected


def _read_text_beside(picture: Path) -> _Said:
    beside = picture.with_suffix(".txt")
    if not beside.is_file():
        return _Said((), str(picture))
    lines = read_utf8(beside).splitlines()
    return _Said(tuple(dict.fromkeys(line.strip() for line in lines if line.strip())), str(beside))


def _read_metadata(path: Path) -> dict[Path, _Said]:
    """The pictures a ``metadata.jsonl`` names. Several lines for one picture are several captions."""
    said: dict[Path, _Said] = {}
    for where, row in _rows(path):
        picture = _named_file(path.parent, row, where)
        captions = _captions_in(row, where)
        earlier = said[picture].captions if picture in said else ()
        said[picture] = _Said(tuple(dict.fromkeys((*earlier, *captions))), where)
    return said


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's object, with the place to name in messages."""
    # not splitlines: a caption may hold U+2028, which JSON leaves as it is
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"not JSON: {error}", where=where) from None
        if not isinstance(row, dict):
            raise UserError('should be an object, such as {"file_name": "a.png", "text": "a cat"}', where=where)
        yield where, row


def _field(row: dict[str, Any], name: str, where: str) -> Any:
    if name in row:
        return row[name]
    others = {"file_name": ["filename", "file", "image", "path"], "text": ["caption", "captions", "prompt"]}[name]
    meant = next(iter([*filter(row.__contains__, others), *get_close_matches(name, row, n=1)]), None)
    raise UserError(f"no {name!r}", where=where, remedy=f"call {meant!r} {name!r}" if meant else None)


def _named_file(folder: Path, row: dict[str, Any], where: str) -> Path:
    name = _field(row, "file_name", where)
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError("'file_name' should be the name of a file", where=where)
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{name} leads out of its folder", where=where)
    picture = folder / parts
    if not picture.is_file():
        raise UserError(f"no such file: {name}", where=where)
    return picture


def _captions_in(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """A caption, a list of captions, or none if null or empty."""
    text = _field(row, "text", where)
    captions = text if isinstance(text, list) else [] if text is None else [text]
    if not all(isinstance(caption, str) for caption in captions):
        raise UserError("'text' should be a caption or a list of captions", where=where)
    for caption in captions:
        _refuse_half_characters(caption, where)
    return tuple(caption.strip() for caption in captions if caption.strip())


def _refuse_half_characters(caption: str, where: str) -> None:
    """JSON can write half of a UTF-16 pair, which is no text: no tokenizer takes it, and no file. UTF-8 cannot."""
    half = re.search(r"[\ud800-\udfff]", caption)
    if half:
        what = f"'text' has half a character, \\u{ord(half[0]):x}"
        raise UserError(what, where=where, remedy="write the caption anew, e.g. with ensure_ascii=False")


def _refuse_uncaptioned(folder: Path, said: dict[Path, _Said]) -> None:
    missing = [(path, found.where) for path, found in said.items() if not found.captions]
    if not missing:
        return
    first = ", ".join(where for _, where in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    captions = "write a .txt beside each"
    remedy = f"{captions}, or give words that stand for a caption: --trigger WORDS"
    if any(path.with_suffix(".caption").is_file() for path, _ in missing):
        captions = remedy = "captions in .caption files are not read: rename them to .txt"
    what = f"{len(missing)} of {len(said)} pictures have no caption: {first}{more}"
    raise Uncaptioned(what, where=folder, captions=captions, remedy=remedy)
