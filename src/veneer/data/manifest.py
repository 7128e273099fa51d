"""The pictures of a run as plain data: what is trained on, what is left out, and a hash of all that training sees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import xxhash

from veneer.data.location import AT_PATH, Located, Location
from veneer.data.tags import TagCaption

__all__ = ["Manifest", "Mask", "Reference", "Rejected", "Sample", "content_id", "sample_id"]


@dataclass(frozen=True)
class Reference:
    """A picture that an edit model is shown beside the instruction. Plain data, no pixels.

    Attributes:
        content: hash of the file's bytes.
        path: the file, for messages.
        width: in pixels, upright.
        height: likewise.
        location: where its bytes lie.
    """

    content: str
    path: Path
    width: int
    height: int
    location: Location


@dataclass(frozen=True)
class Mask:
    """What of a picture is learned. Plain data, no pixels.

    Attributes:
        content: hash of the file's bytes.
        location: where they lie: in a file of its own, or in the picture itself, of which it is the alpha channel then.
        share: of the picture that is learned, by area.
    """

    content: str
    location: Location
    share: float


@dataclass(frozen=True, slots=True)
class Sample(Located):
    """One picture that can be trained on. Plain data, no pixels.

    Attributes:
        id: hash of the file's bytes, so that it is the same wherever the picture lies; of a pair, of all its pictures'.
        path: the file, for messages and reports; ``AT_LOCATION``: as its location says.
        captions: what may be said of it, at least one, each with the trigger.
        width: in pixels, upright, i.e. after the rotation that its EXIF asks for.
        height: likewise.
        repeats: how often an epoch shows it.
        references: of a pair, the pictures that it is made from by the instruction, which is its caption; else none.
        content: hash of the file's own bytes; left out: the id, as it is where there is no reference.
        location: where its bytes lie; left out: in the file ``path``.
        weight: how often it is shown beside others, times ``repeats``.
        tags: those of its captions of which each draw shows another order or a part.
        mask: what of it is learned; None: all.
        frames: of a clip, how many the file has; of a picture 1.
        frame_rate: frames a second of a clip, on the mean; None: it is a picture.
    """

    id: str
    path: Path
    captions: tuple[str, ...]
    width: int
    height: int
    repeats: int
    references: tuple[Reference, ...] = ()
    content: str = ""
    location: Location = AT_PATH
    weight: float = 1.0
    tags: tuple[TagCaption, ...] = ()
    mask: Mask | None = None
    frames: int = 1
    frame_rate: float | None = None

    def __post_init__(self) -> None:
        """Fill the content, and the location or the path, in."""
        object.__setattr__(self, "content", self.content or self.id)
        self._complete()

    @property
    def rate(self) -> float:
        """How often an epoch shows it on the mean."""
        return self.repeats * self.weight

    def __hash__(self) -> int:
        """Return the id's hash, which is quick; equal samples have equal ids."""
        return hash(self.id)


@dataclass(frozen=True)
class Rejected:
    """A picture that is left out, and why.

    Attributes:
        path: the file, for messages.
        reason: why.
        location: where its bytes lie, if it may be read and is left out as a picture alone.
    """

    path: Path
    reason: str
    location: Location | None = None


@dataclass(frozen=True)
class Manifest:
    """Pictures that can be used, and those that cannot."""

    samples: tuple[Sample, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    def fingerprint(self) -> str:
        """Return a hash of all that training sees: contents, captions, repeats, weights, masks; no paths, and no order.

        A weight of 1 is no part of it, nor is that there is no mask.
        """
        digest, before = xxhash.xxh3_128(), b""
        # lines begin with their ids, so these sort them; a million of lines at a time would take much memory
        for _, alike in groupby(sorted(self.samples, key=_id), key=_id):
            for line in sorted(map(_seen_of, alike)):
                digest.update(before + line.encode())
                before = b"\n"
        return digest.hexdigest()

    @property
    def references(self) -> int:
        """How many references each of its samples has, which is the same number for all."""
        return max((len(sample.references) for sample in self.samples), default=0)

    @property
    def masks(self) -> int:
        """How many of its samples have a mask."""
        return sum(sample.mask is not None for sample in self.samples)

    def without(self, others: Manifest) -> Manifest:
        """Return the manifest less pictures of the same bytes among the others."""
        ids = {sample.id for sample in others.samples}
        return Manifest(tuple(sample for sample in self.samples if sample.id not in ids), self.rejected)


def _id(sample: Sample) -> str:
    return sample.id


def _seen_of(sample: Sample) -> str:
    """Return what training sees of a sample; what most samples have none of stands only where there is some."""
    weight = [] if sample.weight == 1 else [sample.weight]
    tags = [[asdict(one) for one in sample.tags]] if sample.tags else []
    return json.dumps([sample.id, sample.captions, sample.repeats, *weight, *tags, *_mask_of(sample)])


def _mask_of(sample: Sample) -> list[str]:
    """Return what tells a sample's mask from others; nothing where it has none."""
    mask = sample.mask
    return [] if mask is None else ["alpha" if mask.location == sample.location else mask.content]


def content_id(content: bytes) -> str:
    """Return the id of a file's bytes: XXH3, 128 bits, in hex."""
    return xxhash.xxh3_128_hexdigest(content)


def sample_id(content: str, references: Sequence[Reference]) -> str:
    """Return the id of a sample: its content, or of a pair the hash of all its pictures' contents in order."""
    if not references:
        return content
    return content_id("+".join([content, *(reference.content for reference in references)]).encode())
