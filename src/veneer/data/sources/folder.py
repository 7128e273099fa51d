"""A folder with a ``.txt`` beside each picture, in which each line is a caption of its own."""

from __future__ import annotations

from pathlib import Path

from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.tree import Tree
from veneer.files import read_utf8

__all__ = ["FolderSource", "entry_with_text_beside", "read_captions"]


class FolderSource:
    """A folder of pictures, each of which may have a text file of the same name beside it."""

    def list_pictures(self, path: Path) -> Listing:
        """List the pictures of a folder and of those below it."""
        return Tree.walk(path).list_pictures(entry_with_text_beside)


def entry_with_text_beside(picture: Path) -> Entry:
    """Return a picture with the captions of the ``.txt`` beside it, with none if there is no such file."""
    beside = picture.with_suffix(".txt")
    if not beside.is_file():
        return Entry(picture, (), captions_at=str(picture))
    return Entry(picture, read_captions(beside), captions_at=str(beside))


def read_captions(file: Path) -> tuple[str, ...]:
    """Read the captions of one picture: each line that is not blank is one."""
    lines = (line.strip() for line in read_utf8(file).splitlines())
    return tuple(dict.fromkeys(filter(None, lines)))
