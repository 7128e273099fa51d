"""Names of files that are the same to their user: in Unicode's NFC and NFD, and in small and capital letters.

macOS writes ``é`` as two characters (NFD) where other systems and most programs write one (NFC), and a list or a
caption file that was made elsewhere then has another name than its picture.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

__all__ = ["NameIndex", "composed", "pictures_named"]

_File = TypeVar("_File")


def composed(name: str) -> str:
    """Return a name in NFC."""
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return composed(composed(name).casefold())


_FORMS: tuple[Callable[[str], str], ...] = (str, composed, _folded)
"""From the strictest to the loosest."""


class NameIndex(Generic[_File]):
    """Files, or where they lie, by their names.

    Args:
        pairs: names that files go by, each with its file.
    """

    def __init__(self, pairs: Iterable[tuple[str, _File]]) -> None:
        self._files: list[dict[str, list[_File]]] = [{} for _ in _FORMS]
        for name, file in pairs:
            for files, form in zip(self._files, _FORMS, strict=True):
                files.setdefault(form(name), []).append(file)

    def find(self, name: str) -> list[_File]:
        """Return the files of a name: those of exactly this one, else in NFC, else in any case of letters."""
        for files, form in zip(self._files, _FORMS, strict=True):
            if found := files.get(form(name)):
                return found
        return []


def pictures_named(pictures: Iterable[Path]) -> Callable[[Path, str], list[Path]]:
    """Return a function of a folder and a name that finds the pictures there which go by it: ``a``, or ``a.png``."""
    by_folder: dict[Path, list[tuple[str, Path]]] = {}
    for picture in dict.fromkeys(pictures):
        names = by_folder.setdefault(picture.parent, [])
        names += [(name, picture) for name in dict.fromkeys((picture.name, picture.stem))]
    indexes = {folder: NameIndex(pairs) for folder, pairs in by_folder.items()}
    return lambda folder, name: indexes[folder].find(name) if folder in indexes else []
