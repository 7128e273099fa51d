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
from veneer.data.decode import TRANSPARENT, decode
from veneer.data.duplicates import THUMB, Thumb
from veneer.data.location import Location
from veneer.data.manifest import Manifest, Mask, Reference, Rejected, Sample, content_id, sample_id
from veneer.data.mask import decode_alpha, decode_mask, mean_of
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
            if first is not None and not _same_mask(first, sample):
                rejected.append(Rejected(entry.path, f"the same picture as {first.path}, which has another mask"))
                continue
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
    mask = _mask(entry, content, image.size)
    if mask is not None:
        remarks = [remark for remark in remarks if remark != TRANSPARENT]
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
        mask=mask,
    )
    return sample, thumb, remarks


def _mask(entry: Entry, content: bytes, size: tuple[int, int]) -> Mask | None:
    """Return the mask of a picture, whose content is given, (width, height) large; None where all of it is learned.

    Raises:
        Unreadable: it cannot be used, leaves nothing to learn, or has another aspect.
    """
    if entry.mask is None:
        return None
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
