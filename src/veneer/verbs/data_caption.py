"""Write a caption beside each picture of a folder that has none; a run that was stopped goes on where it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from PIL import Image

from veneer.config.colour import rgb
from veneer.config.source_config import SourceConfig
from veneer.data.clip import still
from veneer.data.inspection import Advance, no_progress
from veneer.data.sources.folder import FolderSource
from veneer.data.sources.metadata import MetadataSource
from veneer.data.sources.protocol import Entry
from veneer.data.unreadable import Unreadable
from veneer.errors import UserError
from veneer.files import atomic_write, opens_paths

__all__ = ["CaptionedFolder", "CaptionedPicture", "ImageCaptioner", "caption_folder", "list_captions"]

_BACKGROUND = "white"


class ImageCaptioner(Protocol):
    """What captions a picture; ``veneer.verbs.captioner.Captioner`` is one."""

    def caption(self, image: Image.Image) -> str:
        """Return the caption of a picture.

        Raises:
            UserError: it has none.
        """


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture of a folder, and what is known of its captions.

    Attributes:
        path: the picture.
        captions: its captions; none if it has none.
        fault: why it has none; None: it was not tried.
        is_new: whether the caption was written now.
    """

    path: Path
    captions: tuple[str, ...] = ()
    fault: str | None = None
    is_new: bool = False


@dataclass(frozen=True)
class CaptionedFolder:
    """The pictures of a folder, in the order of their paths."""

    pictures: tuple[CaptionedPicture, ...] = field(default_factory=tuple)

    @property
    def written(self) -> int:
        """How many captions were written."""
        return sum(one.is_new for one in self.pictures)

    @property
    def kept(self) -> int:
        """How many pictures had captions that were left as they are."""
        return sum(bool(one.captions) and not one.is_new and one.fault is None for one in self.pictures)

    @property
    def failed(self) -> dict[str, str]:
        """Why pictures have no caption, by path."""
        return {str(one.path): one.fault for one in self.pictures if one.fault is not None}


@opens_paths
def list_captions(folder: Path) -> CaptionedFolder:
    """List the pictures of a folder with the captions that are beside them.

    Raises:
        UserError: there is no such folder or no picture in it, or a list speaks for it.
    """
    entries = _entries(folder)
    return CaptionedFolder(tuple(CaptionedPicture(entry.path, entry.captions) for entry in entries))


@opens_paths
def caption_folder(
    folder: Path,
    captioner: ImageCaptioner,
    prefix: str = "",
    overwrite: bool = False,
    progress: Advance = no_progress,
) -> CaptionedFolder:
    """Caption the pictures of a folder, each in a ``.txt`` beside it, which is there whole or not at all.

    Args:
        folder: of the pictures; those below it are captioned too.
        captioner: makes the captions.
        prefix: words before each caption.
        overwrite: write captions anew where there are some; else those are kept.
        progress: is called after each picture, with how many are done and how many there are.

    Raises:
        UserError: there is no such folder or no picture in it, a list speaks for it, or it cannot be written to.
    """
    entries = _entries(folder)
    stems = Counter(entry.path.with_suffix("") for entry in entries)
    done: list[CaptionedPicture] = []
    for number, entry in enumerate(entries, 1):
        one = CaptionedPicture(entry.path, entry.captions)
        if overwrite or not entry.captions:
            is_shared = stems[entry.path.with_suffix("")] > 1
            one = _caption(entry, captioner, prefix, _place(entry.path, is_shared))
        done.append(one)
        progress(number, len(entries))
    return CaptionedFolder(tuple(done))


def _entries(folder: Path) -> Sequence[Entry]:
    if not folder.is_dir():
        what = "is no folder, and captions are written beside the pictures of one"
        raise UserError(what, code="caption.not_a_folder", where=folder, remedy="unpack it, or name a folder")
    config = SourceConfig(path=folder)
    if MetadataSource().list_pictures(config) is not None:
        what = "a metadata.jsonl or metadata.csv speaks for this folder, so that captions beside pictures are not read"
        raise UserError(what, code="caption.list_speaks", where=folder, remedy="move the list away")
    return FolderSource().list_pictures(config).entries


def _place(picture: Path, is_shared: bool) -> Path:
    """Return where a picture's caption is written: ``a.txt``, which is of each ``a`` with another ending as well."""
    return picture.with_name(f"{picture.name}.txt") if is_shared else picture.with_suffix(".txt")


def _caption(entry: Entry, captioner: ImageCaptioner, prefix: str, place: Path) -> CaptionedPicture:
    one = CaptionedPicture(entry.path, entry.captions)
    try:
        image = still(entry.location.read(), rgb(_BACKGROUND))
        caption = " ".join(filter(None, (prefix.strip(), captioner.caption(image))))
    except OSError as error:
        return replace(one, fault=f"cannot be read: {error.strerror}")
    except Unreadable as error:
        return replace(one, fault=str(error))
    except UserError as error:
        return replace(one, fault=error.what)
    atomic_write(place, f"{caption}\n".encode())
    return replace(one, captions=(caption,), is_new=True)
