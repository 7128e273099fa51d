"""Subfolders of numbered frames, each of which is a clip (an image sequence), with captions beside the folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from veneer.config.source_config import SourceConfig
from veneer.data.frame_sequence import FrameSequence
from veneer.data.manifest import Rejected
from veneer.data.sources.caption_files import CaptionFiles
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.tree import Tree, is_clip
from veneer.data.sources.unread import find_unread
from veneer.errors import UserError

__all__ = ["list_sequences"]

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class _SequenceTree(Tree):
    """A tree in which each folder of frames stands for one picture."""

    @cached_property
    def sequences(self) -> dict[Path, list[Path]]:
        """The frames of each folder below the root, in the order of the numbers in their names."""
        found: dict[Path, list[Path]] = {}
        for path in self.readable:
            if path.parent != self.folder and self._reason_against(path) is None:
                found.setdefault(path.parent, []).append(path)
        return {folder: sorted(frames, key=_in_order) for folder, frames in found.items()}

    @cached_property
    def pictures(self) -> tuple[Path, ...]:
        """The folders of frames, the pictures beside them, and videos."""
        others = (path for path in super().pictures if path.parent == self.folder or is_clip(path))
        return (*others, *self.sequences)


def list_sequences(config: SourceConfig, rate: float) -> Listing:
    """List the clips of a folder or an archive whose subfolders hold frames.

    Args:
        config: the source.
        rate: frames a second.

    Raises:
        UserError: no subfolder holds frames, or a caption cannot be read.
    """
    walked = Tree.walk(config.path, config.follow_links)
    tree = _SequenceTree(walked.filesystem, walked.files)
    if not tree.sequences:
        what = "no subfolder holds frames"
        remedy = "put the frames of each clip in a folder of its own, or leave image_sequences out"
        raise UserError(what, code="data.no_image_sequence", where=config.path, remedy=remedy)
    captions = CaptionFiles(tree, config.captions)
    entries: list[Entry] = []
    rejected: list[Rejected] = []
    for path in tree.pictures:
        described = tree.filesystem.fault(path) or captions.describe(path)
        if isinstance(described, str):
            rejected.append(Rejected(path, described))
        else:
            entries += [_located(entry, tree, rate) for entry in described]
    unread = tuple(find_unread(tree, captions.read))
    return Listing(tuple(entries), tuple(rejected), tuple(captions.notes()), unread)


def _located(entry: Entry, tree: _SequenceTree, rate: float) -> Entry:
    frames = tree.sequences.get(entry.path)
    if frames is None:
        return replace(entry, location=tree.location(entry.path))
    places = tuple(tree.location(frame) for frame in frames)
    return replace(entry, location=FrameSequence.of(entry.path, places, rate))


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Return what a name is sorted by: its numbers as numbers, so that ``2.png`` is before ``10.png``."""
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in _DIGITS.split(path.name)]
