"""Caption files beside pictures: their names, how they are read, and which of them are not.

Trainers and taggers name them differently: ``a.txt`` (most), ``a.caption`` (kohya's scripts, BLIP), ``a.cap``,
``a.tags``, and with the picture's whole name, ``a.png.txt`` (booru downloaders, Hydrus). All are read, in any case of
letters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

from veneer.data.sources.names import NameIndex
from veneer.data.sources.protocol import Entry
from veneer.data.wording import few
from veneer.files import read_utf8

__all__ = ["CAPTION_ENDINGS", "CaptionFile", "CaptionFiles", "CaptionMode"]

CAPTION_ENDINGS = (".txt", ".text", ".caption", ".captions", ".cap", ".tags", ".tag", ".prompt", ".prompts")
"""Endings of caption files in small letters, in the order in which several files of one picture are read."""

CaptionMode: TypeAlias = Literal["lines", "whole"]
"""What is a caption in a caption file: each line that is not blank, or the whole file."""


@dataclass(frozen=True)
class CaptionFile:
    """A caption file, which is read when its lines are asked for."""

    path: Path

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """The lines that are not blank; a line ends as ``str.splitlines`` has it, also at a form feed or U+2028."""
        lines = (line.strip() for line in read_utf8(self.path).splitlines())
        return tuple(filter(None, lines))

    def captions(self, mode: CaptionMode) -> tuple[str, ...]:
        """Return its captions, each once; none if it is empty."""
        captions = self.lines if mode == "lines" else (" ".join(self.lines),)
        return tuple(dict.fromkeys(filter(None, captions)))


class CaptionFiles:
    """The caption files among some files, each with the pictures that it is beside.

    Args:
        files: all files.
        pictures: those of them that are pictures.
        mode: what is a caption.
        endings: of caption files, in small letters.
    """

    def __init__(
        self,
        files: Iterable[Path],
        pictures: Sequence[Path],
        mode: CaptionMode,
        endings: Sequence[str] = CAPTION_ENDINGS,
    ) -> None:
        self._mode = mode
        self._of_picture: dict[Path, list[CaptionFile]] = {}
        self._used: dict[Path, list[CaptionFile]] = {}
        pictures_beside = beside(pictures)
        found = [file for file in files if file.suffix.lower() in endings and file.is_file()]
        # several files of one picture are read in the order of the endings, `a.txt` before `a.png.txt`
        for file in sorted(found, key=lambda file: (endings.index(file.suffix.lower()), len(file.name), file.name)):
            caption_file = CaptionFile(file)
            for picture in pictures_beside(file):
                self._of_picture.setdefault(picture, []).append(caption_file)

    def describe(self, picture: Path) -> Entry:
        """Return a picture with the captions of the files beside it, with none if there is no such file."""
        files = self._of_picture.get(picture, [])
        self._used[picture] = files
        captions = dict.fromkeys(caption for file in files for caption in file.captions(self._mode))
        return Entry(picture, tuple(captions), captions_at=str(files[0].path if files else picture))

    @property
    def read(self) -> list[CaptionFile]:
        """The files that were read, in order."""
        return list({file.path: file for files in self._used.values() for file in files}.values())

    def notes(self) -> list[str]:
        """Return what is to be said of the files that were read, a sentence each."""
        empty = [file.path for file in self.read if not file.lines]
        long = [file.path for file in self.read if len(file.captions(self._mode)) > 1]
        several = [file.path for files in self._used.values() if len(files) > 1 for file in files]
        facts = (
            (empty, "are empty"),
            (long, "have several lines, each taken as a caption of its own (captions: whole makes them one)"),
            (several, "are beside a picture that has others, and all are read (move away those that should not be)"),
        )
        return [f"{len(paths)} caption files {what}: {few(paths)}" for paths, what in facts if paths]


def beside(pictures: Iterable[Path]) -> Callable[[Path], list[Path]]:
    """Return a function that finds the pictures that a file is beside: ``a.txt`` and ``a.png.txt`` are of ``a.png``."""
    by_folder: dict[Path, list[tuple[str, Path]]] = {}
    for picture in pictures:
        names = by_folder.setdefault(picture.parent, [])
        names += [(name, picture) for name in dict.fromkeys((picture.name, picture.stem))]
    indexes = {folder: NameIndex(pairs) for folder, pairs in by_folder.items()}
    return lambda file: indexes[file.parent].find(file.stem) if file.parent in indexes else []
