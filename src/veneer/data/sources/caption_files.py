"""Caption files beside pictures: their names, how they are read, and which of them are not.

Trainers and taggers name them differently: ``a.txt`` (most), ``a.caption`` (kohya's scripts, BLIP), ``a.cap``,
``a.tags``, and with the picture's whole name, ``a.png.txt`` (booru downloaders, Hydrus). All are read, in any case of
letters. So is a ``.json`` with a key that tells of captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from veneer.data.sources.json_captions import CAPTION_KEYS, captions_of, is_captioned, parse_json
from veneer.data.sources.names import pictures_named
from veneer.data.sources.protocol import Entry
from veneer.data.sources.tree import Tree
from veneer.data.wording import few
from veneer.errors import UserError

__all__ = ["CAPTION_ENDINGS", "JSON_ENDING", "CaptionFile", "CaptionFiles", "CaptionMode"]

CAPTION_ENDINGS = (".txt", ".text", ".caption", ".captions", ".cap", ".tags", ".tag", ".prompt", ".prompts")
"""Endings of caption files in small letters, in the order in which several files of one picture are read."""
JSON_ENDING = ".json"
"""Ending of a file of keys, which is read behind the others."""
_LIMIT = 2**20  # bytes of one picture's captions

CaptionMode: TypeAlias = Literal["lines", "whole"]
"""What is a caption in a caption file: each line that is not blank, or the whole file."""


class CaptionFile(Protocol):
    """A file with the captions of a picture, which is read when it is asked for them."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def is_captions(self) -> bool:
        """Whether it tells of captions at all."""

    def captions(self, mode: CaptionMode) -> tuple[str, ...]:
        """Return its captions, each once; none if it is empty."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines that are captions of their own where lines are."""

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys in it that are not read."""


@dataclass(frozen=True)
class _TextFile:
    tree: Tree
    path: Path
    is_captions = True
    unread = ()

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """The lines that are not blank; a line ends as ``str.splitlines`` has it, also at a form feed or U+2028."""
        lines = (line.strip() for line in self.tree.read_text(self.path, _LIMIT).splitlines())
        return tuple(filter(None, lines))

    def captions(self, mode: CaptionMode) -> tuple[str, ...]:
        captions = self.lines if mode == "lines" else (" ".join(self.lines),)
        return tuple(dict.fromkeys(filter(None, captions)))


@dataclass(frozen=True)
class _JsonFile:
    tree: Tree
    path: Path
    lines = ()

    @cached_property
    def _record(self) -> Any:
        return parse_json(self.tree.read_text(self.path, _LIMIT), self.path)

    @property
    def is_captions(self) -> bool:
        return is_captioned(self._record)

    def captions(self, mode: CaptionMode) -> tuple[str, ...]:
        return captions_of(self._record, self.path)

    @property
    def unread(self) -> tuple[str, ...]:
        return tuple(key for key in self._record if key not in CAPTION_KEYS)


class CaptionFiles:
    """The caption files in a tree, each with the pictures that it is beside.

    Args:
        tree: the files, and the pictures among them.
        mode: what is a caption.
        endings: of caption files, in small letters.
    """

    def __init__(self, tree: Tree, mode: CaptionMode, endings: Sequence[str] = (*CAPTION_ENDINGS, JSON_ENDING)) -> None:
        self._mode = mode
        self._of_picture: dict[Path, list[CaptionFile]] = {}
        self._used: dict[Path, list[CaptionFile]] = {}
        self._faulty: list[Path] = []
        pictures_beside = beside(tree.pictures)
        found = [file for file in tree.own_files if file.suffix.lower() in endings]
        # several files of one picture are read in the order of the endings, `a.txt` before `a.png.txt`
        for file in sorted(found, key=lambda file: (endings.index(file.suffix.lower()), len(file.name), file.name)):
            make = _JsonFile if file.suffix.lower() == JSON_ENDING else _TextFile
            caption_file: CaptionFile = make(tree, file)
            for picture in pictures_beside(file):
                self._of_picture.setdefault(picture, []).append(caption_file)

    def describe(self, picture: Path) -> Sequence[Entry] | str:
        """Return a picture with the captions of the files beside it, with none if there is no such file.

        Where one of them cannot be read, why: a picture is not trained on with other words than were meant for it.
        """
        captions: dict[str, None] = {}
        files: list[CaptionFile] = []
        for file in self._of_picture.get(picture, []):
            try:
                if file.is_captions:
                    captions |= dict.fromkeys(file.captions(self._mode))
                    files.append(file)
            except UserError as error:
                self._faulty.append(file.path)
                remedy = f"; {error.remedy}" if error.remedy else ""
                return f"its caption file {file.path}: {error.what}{remedy}"
        self._used[picture] = files
        return [Entry(picture, tuple(captions), captions_at=str(files[0].path if files else picture))]

    @property
    def read(self) -> list[Path]:
        """The files that were read, in order, or could not be."""
        return list(dict.fromkeys([*(file.path for file in self._files), *self._faulty]))

    @property
    def _files(self) -> list[CaptionFile]:
        return list({file.path: file for files in self._used.values() for file in files}.values())

    def notes(self) -> list[str]:
        """Return what is to be said of the files that were read, a sentence each."""
        empty = [file.path for file in self._files if not file.captions(self._mode)]
        long = [file.path for file in self._files if self._mode == "lines" and len(dict.fromkeys(file.lines)) > 1]
        several = [file.path for files in self._used.values() if len(files) > 1 for file in files]
        facts = (
            (empty, "are empty"),
            (long, "have several lines, each taken as a caption of its own (captions: whole makes them one)"),
            (several, "are beside a picture that has others, and all are read (move away those that should not be)"),
        )
        notes = [f"{len(paths)} caption files {what}: {few(paths)}" for paths, what in facts if paths]
        keys = list(dict.fromkeys(key for file in self._files for key in file.unread))
        first = next((file.path for file in self._files if file.unread), None)
        return [*notes, f"not read in {first} and the like: {few(keys)}"] if keys else notes


def beside(pictures: Iterable[Path]) -> Callable[[Path], list[Path]]:
    """Return a function that finds the pictures that a file is beside: ``a.txt`` and ``a.png.txt`` are of ``a.png``."""
    find = pictures_named(pictures)
    return lambda file: find(file.parent, file.stem)
