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
from veneer.data.decode import Unreadable, decode
from veneer.data.duplicates import THUMB, Thumb
from veneer.data.manifest import Manifest, Rejected, Sample, content_id
from veneer.data.sources.protocol import Entry, Listing

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
    for listing in listings:
        rejected += listing.rejected
        notes += listing.notes
        for entry in listing.entries:
            try:
                sample, thumb = _inspect(entry, rgb(background))
            except Unreadable as error:
                rejected.append(Rejected(entry.path, str(error)))
                continue
            first = samples.get(sample.id)
            if first is not None:
                copies.append((first.path, sample.path))
                sample = _unite(first, sample)
            samples[sample.id], thumbs[sample.id] = sample, thumb
    return Inspection(samples, thumbs, tuple(rejected), tuple(copies), tuple(notes))


def _inspect(entry: Entry, background: tuple[int, int, int]) -> tuple[Sample, Thumb]:
    try:
        content = entry.path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None
    image = decode(content, background)
    thumb = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX))
    return Sample(content_id(content), entry.path, entry.captions, *image.size, entry.repeats), thumb


def _unite(first: Sample, second: Sample) -> Sample:
    captions = tuple(dict.fromkeys((*first.captions, *second.captions)))
    return replace(first, captions=captions, repeats=first.repeats + second.repeats)
