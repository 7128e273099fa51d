"""Decode each picture once before anything is trained, as training will decode it.

A fault in a picture puts that picture aside and says why.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from veneer.config.colour import rgb
from veneer.data.clip import is_clip
from veneer.data.collector import spared
from veneer.data.decode import TRANSPARENT, decode
from veneer.data.duplicates import THUMB
from veneer.data.location import Location
from veneer.data.manifest import Manifest, Mask, Reference, Rejected, Sample, content_id, sample_id
from veneer.data.mask import decode_alpha, decode_mask, mean_of
from veneer.data.near_pairs import Bytes
from veneer.data.parallel import map_in_order
from veneer.data.seen import Look, Seen, see
from veneer.data.seen_clip import see_clip
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.tree import is_readable
from veneer.data.unreadable import Unreadable
from veneer.data.wording import few

__all__ = ["Advance", "Inspection", "inspect_pictures", "no_progress"]

Advance: TypeAlias = Callable[[int, int], None]
"""Called with how many are done, and how many there are."""


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Inspection:
    """The result of decoding pictures: those that can be used, each id once, and those that cannot.

    Attributes:
        samples: those that can be used, by id.
        thumbs: their thumbnails, (N, THUMB, THUMB, 3), in the samples' order; none where they are not kept.
        looks: what was seen of them, by id.
        rejected: those that are left out.
        faults: those of them that cannot be used, though they should be.
        copies: pairs of files of the same bytes, of which the first is among the samples.
        notes: what their sources say of them, a sentence each.
    """

    samples: dict[str, Sample] = field(default_factory=dict)
    thumbs: Bytes = field(default_factory=lambda: _as_thumbs(b""), compare=False)
    looks: dict[str, Look] = field(default_factory=dict)
    rejected: tuple[Rejected, ...] = ()
    faults: tuple[Rejected, ...] = ()
    copies: tuple[tuple[Path, Path], ...] = ()
    notes: tuple[str, ...] = ()

    def manifest(self) -> Manifest:
        """Return the pictures without their thumbnails."""
        return Manifest(tuple(self.samples.values()), self.rejected)


@dataclass(frozen=True)
class _Inspected:
    """A picture that can be used, with remarks on how it is decoded; and its thumbnail's bytes."""

    sample: Sample
    thumb: bytes
    look: Look
    remarks: tuple[str, ...]


def inspect_pictures(
    listings: Iterable[Listing],
    background: str,
    progress: Advance = no_progress,
    workers: int | None = None,
    *,
    clips: bool = False,
) -> Inspection:
    """Decode every picture; the same picture twice is one, with the captions and repeats of both.

    Args:
        listings: of the sources.
        background: colour that transparent pictures are laid on.
        progress: is called with the number of pictures that are done, and of all.
        workers: threads that decode, on which nothing else depends; default: one for each core.
        clips: whether videos and animated pictures are clips; else of these the first frame is seen, and none of those.
    """
    rejected, notes, entries = list[Rejected](), list[str](), deque[Entry]()
    for listing in listings:
        rejected += listing.rejected
        notes += listing.notes
        entries += listing.entries
        del listing  # of a million pictures their listing takes as much memory as what is kept of them
    collected = _Collected(rejected, [one for one in rejected if not is_readable(one.path)])
    total = len(entries)
    results = _inspect_all(entries, partial(_inspect, background=rgb(background), clips=clips), workers)
    with closing(results):
        for done, (entry, result) in enumerate(spared(results), start=1):
            collected.add(entry, result)
            progress(done, total)
    return collected.inspection(notes)


@dataclass
class _Collected:
    """What is known of the pictures that were decoded so far."""

    rejected: list[Rejected]
    faults: list[Rejected]
    samples: dict[str, Sample] = field(default_factory=dict)
    thumbs: bytearray = field(default_factory=bytearray)
    looks: dict[str, Look] = field(default_factory=dict)
    copies: list[tuple[Path, Path]] = field(default_factory=list)
    remarks: dict[str, list[Path]] = field(default_factory=dict)

    def add(self, entry: Entry, result: _Inspected | Unreadable) -> None:
        """Take one picture in, or put it aside."""
        if isinstance(result, Unreadable):
            rejected = Rejected(entry.path, str(result))
            self.rejected.append(rejected)
            self.faults.append(rejected)
            return
        for remark in result.remarks:
            self.remarks.setdefault(remark, []).append(entry.path)
        sample = result.sample
        first = self.samples.get(sample.id)
        if first is not None and not _same_mask(first, sample):
            reason = f"the same picture as {first.path}, which has another mask"
            self.rejected.append(Rejected(entry.path, reason))
            return
        if first is not None:
            self.copies.append((first.path, sample.path))
            sample = _unite(first, sample)
        else:
            self.thumbs += result.thumb
        self.samples[sample.id], self.looks[sample.id] = sample, result.look

    def inspection(self, notes: list[str]) -> Inspection:
        """Return all of it.

        Args:
            notes: of the sources.
        """
        notes = notes + [f"{remark}: {few(paths)}" for remark, paths in self.remarks.items()]
        rejected, faults = tuple(self.rejected), tuple(self.faults)
        thumbs, copies = _as_thumbs(self.thumbs), tuple(self.copies)
        return Inspection(self.samples, thumbs, self.looks, rejected, faults, copies, tuple(notes))


def _inspect_all(
    entries: deque[Entry], inspect: Callable[[Entry], _Inspected | Unreadable], workers: int | None
) -> Generator[tuple[Entry, _Inspected | Unreadable], None, None]:
    """Yield each picture, which is taken out, and what it is; those that their sources have decoded need no thread."""
    unknown = [entry for entry in entries if not _is_known(entry)]
    with closing(map_in_order(inspect, unknown, workers)) as decoded:
        while entries:
            entry = entries.popleft()
            yield entry, _inspected(entry, entry.seen) if _is_known(entry) and entry.seen else next(decoded)


def _is_known(entry: Entry) -> bool:
    return entry.seen is not None and entry.mask is None and not entry.references


def _inspect(entry: Entry, background: tuple[int, int, int], clips: bool) -> _Inspected | Unreadable:
    """Return what a picture is, or why it cannot be used."""
    try:
        content = _read(entry.location)
        seen = see_clip(content, background) if clips and is_clip(content) else see(content, background)
        size = seen.width, seen.height
        mask = _mask(entry, content, size)
        remarks: list[str] = []
        references = tuple(_reference(one, size, background, remarks) for one in entry.references)
    except Unreadable as error:
        return error
    said = [remark for remark in seen.remarks if mask is None or remark != TRANSPARENT]
    return _inspected(entry, replace(seen, remarks=(*said, *remarks)), mask, references)


def _inspected(
    entry: Entry, seen: Seen, mask: Mask | None = None, references: tuple[Reference, ...] = ()
) -> _Inspected:
    sample = Sample(
        sample_id(seen.content, references),
        entry.given_path,
        entry.captions,
        seen.width,
        seen.height,
        entry.repeats,
        references,
        seen.content,
        location=entry.location,
        weight=entry.weight,
        tags=entry.tags,
        mask=mask,
        frames=seen.frames,
        frame_rate=seen.frame_rate,
    )
    return _Inspected(sample, seen.thumb, seen.look, seen.remarks)


def _as_thumbs(content: bytes | bytearray) -> Bytes:
    """Return the thumbnails whose bytes follow each other."""
    return np.frombuffer(content, np.uint8).reshape(-1, THUMB, THUMB, 3)


def _mask(entry: Entry, content: bytes, size: tuple[int, int]) -> Mask | None:
    """Return the mask of a picture, whose content is given, (width, height) large; None where all of it is learned.

    Raises:
        Unreadable: it cannot be used, leaves nothing to learn, or has another aspect.
    """
    if entry.mask is None:
        return None
    if entry.mask == entry.location and is_clip(content):
        raise Unreadable(
            "a clip, of which no alpha channel is read as a mask: name a mask beside it, or leave masks out"
        )
    if entry.mask == entry.location:
        alpha = decode_alpha(content)
        return None if alpha is None else Mask(content_id(content), entry.location, mean_of(alpha))
    try:
        own = _read(entry.mask)
        mask = decode_mask(own)
    except Unreadable as error:
        raise Unreadable(f"its mask {entry.mask}: {error}") from None
    _check_shape(f"mask {entry.mask}", mask.size, size)
    return Mask(content_id(own), entry.mask, mean_of(mask))


def _reference(
    location: Location, size: tuple[int, int], background: tuple[int, int, int], remarks: list[str]
) -> Reference:
    """Return a reference of a picture, (width, height) large, which is cut and resized as the picture is.

    Raises:
        Unreadable: it cannot be used, or has another aspect: an adapter would learn to zoom or to shift.
    """
    said: list[str] = []
    try:
        content = _read(location)
        width, height = decode(content, background, said).size
    except Unreadable as error:
        raise Unreadable(f"its reference {location}: {error}") from None
    remarks += [remark for remark in said if remark != TRANSPARENT]  # it is shown, not learned
    _check_shape(f"reference {location}", (width, height), size)
    return Reference(content_id(content), location.path, width, height, location)


def _check_shape(name: str, own: tuple[int, int], size: tuple[int, int]) -> None:
    """Refuse what belongs to a picture and has another aspect than it; sizes are (width, height)."""
    (width, height), (wide, tall) = own, size
    # one side may have been rounded to whole pixels when either was resized
    if abs(width * tall - height * wide) > max(*own, *size):
        what = f"its {name} is {width} x {height}, and it is {wide} x {tall}"
        raise Unreadable(f"{what}: crop or pad one to the other's shape")


def _read(location: Location) -> bytes:
    try:
        return location.read()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None


def _same_mask(first: Sample, second: Sample) -> bool:
    one, other = first.mask, second.mask
    return one == other or (one is not None and other is not None and one.content == other.content)


def _unite(first: Sample, second: Sample) -> Sample:
    captions = tuple(dict.fromkeys((*first.captions, *second.captions)))
    repeats = first.repeats + second.repeats
    tags = tuple(dict.fromkeys((*first.tags, *second.tags)))
    weight = (first.rate + second.rate) / repeats
    return replace(first, captions=captions, repeats=repeats, weight=weight, tags=tags)
