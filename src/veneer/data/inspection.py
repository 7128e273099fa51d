"""Decode each picture once before anything is trained, as training will decode it.

A fault in a picture puts that picture aside and says why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from veneer.config.colour import rgb
from veneer.data.decode import decode
from veneer.data.duplicates import THUMB, Thumb
from veneer.data.location import Location
from veneer.data.manifest import Manifest, Reference, Rejected, Sample, content_id, sample_id
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.unreadable import Unreadable
from veneer.data.wording import few

__all__ = ["Inspection", "inspect_pictures"]


@dataclass(frozen=True)
class Inspection:
    """The result of decoding pictures: those that can be used, each id once, and those that cannot.

    Attributes:
        samples: those that can be used, by id.
        thumbs: their thumbnails, by id.
        rejected: those that cannot.
        copies: pairs of files of the same bytes, of which the first is among the samples.
        notes: what their sources say of them, a sentence each.
    """

    samples: dict[str, Sample] = field(default_factory=dict)
    thumbs: dict[str, Thumb] = field(default_factory=dict)
    rejected: tuple[Rejected, ...] = ()
    copies: tuple[tuple[Path, Path], ...] = ()
    notes: tuple[str, ...] = ()

    def manifest(self) -> Manifest:
        """Return the pictures without their thumbnails."""
        return Manifest(tuple(self.samples.values()), self.rejected)


def inspect_pictures(listings: Iterable[Listing], background: str) -> Inspection:
    """Decode every picture; the same picture twice is one, with the captions and repeats of both."""
    samples: dict[str, Sample] = {}
    thumbs: dict[str, Thumb] = {}
    rejected: list[Rejected] = []
    copies: list[tuple[Path, Path]] = []
    notes: list[str] = []
    remarks: dict[str, list[Path]] = {}
    for listing in listings:
        rejected += listing.rejected
        notes += listing.notes
        for entry in listing.entries:
            try:
                sample, thumb, said = _inspect(entry, rgb(background))
            except Unreadable as error:
                rejected.append(Rejected(entry.path, str(error)))
                continue
            for remark in said:
                remarks.setdefault(remark, []).append(entry.path)
            first = samples.get(sample.id)
            if first is not None:
                copies.append((first.path, sample.path))
                sample = _unite(first, sample)
            samples[sample.id], thumbs[sample.id] = sample, thumb
    notes += [f"{remark}: {few(paths)}" for remark, paths in remarks.items()]
    return Inspection(samples, thumbs, tuple(rejected), tuple(copies), tuple(notes))


def _inspect(entry: Entry, background: tuple[int, int, int]) -> tuple[Sample, Thumb, list[str]]:
    """Return a picture, its thumbnail, and remarks on how it is decoded."""
    remarks: list[str] = []
    content = _read(entry.location)
    image = decode(content, background, remarks)
    thumb = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX))
    own = content_id(content)
    references = tuple(_reference(one, image.size, background, remarks) for one in entry.references)
    id = sample_id(own, references)
    sample = Sample(
        id,
        entry.path,
        entry.captions,
        *image.size,
        entry.repeats,
        references,
        own,
        location=entry.location,
        weight=entry.weight,
        tags=entry.tags,
    )
    return sample, thumb, remarks


def _reference(
    location: Location, size: tuple[int, int], background: tuple[int, int, int], remarks: list[str]
) -> Reference:
    """Return a reference of a picture, (width, height) large, which is cut and resized as the picture is.

    Raises:
        Unreadable: it cannot be used, or has another aspect: an adapter would learn to zoom or to shift.
    """
    try:
        content = _read(location)
        width, height = decode(content, background, remarks).size
    except Unreadable as error:
        raise Unreadable(f"its reference {location}: {error}") from None
    # one side may have been rounded to whole pixels when either was resized
    if abs(width * size[1] - height * size[0]) > max(width, height, *size):
        ours, theirs = f"{size[0]} x {size[1]}", f"{width} x {height}"
        raise Unreadable(
            f"its reference {location} is {theirs}, and it is {ours}: crop or pad one to the other's shape"
        )
    return Reference(content_id(content), location.path, width, height, location)


def _read(location: Location) -> bytes:
    try:
        return location.read()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None


def _unite(first: Sample, second: Sample) -> Sample:
    captions = tuple(dict.fromkeys((*first.captions, *second.captions)))
    repeats = first.repeats + second.repeats
    tags = tuple(dict.fromkeys((*first.tags, *second.tags)))
    weight = (first.rate + second.rate) / repeats
    return replace(first, captions=captions, repeats=repeats, weight=weight, tags=tags)
