"""The ``metadata_file`` of kohya's dataset files: JSON with an object of ``caption`` and ``tags`` for each picture.

Its keys are paths of pictures, or their names below ``image_dir``, with or without an ending.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from veneer.data.sources.json_captions import CAPTION_KEYS, captions_of, parse_json
from veneer.data.sources.names import NameIndex
from veneer.data.sources.protocol import Entry
from veneer.data.sources.tree import Tree
from veneer.data.wording import few
from veneer.errors import UserError
from veneer.files import read_utf8

__all__ = ["read_kohya_metadata"]

_EXAMPLE = '{"a": {"caption": "a cat"}}'
_OF_CACHES = "train_resolution"
"""The size of latents that kohya's scripts have cached, which no reader of pictures needs."""


def read_kohya_metadata(file: Path, tree: Tree) -> tuple[dict[Path, Entry], list[str]]:
    """Return the pictures that a file names, and notes on what it says and is not read.

    Args:
        file: the ``metadata_file``.
        tree: of ``image_dir``.

    Raises:
        UserError: the file is at fault, or names a picture that is not there or lies elsewhere.
    """
    content = parse_json(read_utf8(file), file)
    if not isinstance(content, dict) or not all(isinstance(said, dict) for said in content.values()):
        what = f"should be an object of objects, such as {_EXAMPLE}"
        raise UserError(what, code="data.toml_metadata", where=file)
    index = _index(tree)
    entries: dict[Path, Entry] = {}
    for name, said in content.items():
        where = f"{file}: {name}"
        picture = _named(name, tree, index, where)
        entries[picture] = Entry(picture, captions_of(said, where), captions_at=where)
    return entries, _note_unread(file, content)


def _index(tree: Tree) -> NameIndex[Path]:
    inside = [(picture.relative_to(tree.folder), picture) for picture in tree.pictures]
    return NameIndex((name, path) for place, path in inside for name in (place.as_posix(), _stem(place)))


def _stem(place: Path) -> str:
    return place.with_suffix("").as_posix()


def _named(name: str, tree: Tree, index: NameIndex[Path], where: str) -> Path:
    """Return the picture that a key means, of several endings the first, as kohya's scripts do."""
    place = Path(name)
    if place.is_absolute():
        root = tree.folder.absolute()
        if not place.is_relative_to(root):
            what = f"lies outside image_dir, which is {root}"
            raise UserError(what, code="data.metadata_file_outside", where=where)
        place = place.relative_to(root)
    found = index.find(place.as_posix()) if name else []
    if not found:
        raise UserError("no such picture in image_dir", code="data.metadata_file_missing", where=where)
    return found[0]


def _note_unread(file: Path, content: Mapping[str, Mapping[str, object]]) -> list[str]:
    keys = dict.fromkeys(key for said in content.values() for key in said if key not in (*CAPTION_KEYS, _OF_CACHES))
    return [f"not read in {file}: {few(list(keys))}"] if keys else []
