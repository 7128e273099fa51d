"""The numbers of pictures and captions of a run, as far as they decide its memory and its schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from veneer.config.data_config import DataConfig
from veneer.config.schema import RunConfig
from veneer.data.bucket_table import ShapedPicture
from veneer.data.buckets import Buckets, Size
from veneer.data.manifest import Sample
from veneer.data.picture_header import clip_length, upright_size
from veneer.data.preflight import Dataset, refuse_if_none
from veneer.data.sources.protocol import Entry
from veneer.data.sources.registry import read_sources

__all__ = ["ListedPicture", "PictureCounts"]

_MOST_OPENED = 10_000
"""Pictures whose sizes are read for a plan: some seconds."""


@dataclass(frozen=True)
class PictureCounts:
    """The numbers of pictures and captions of a run.

    Attributes:
        shown: pictures of an epoch, repeats counted.
        distinct: pictures that are encoded, class pictures and held-out ones included.
        captions: distinct texts that are made of captions, at most.
        references: of each picture.
        masks: pictures that have one.
        shapes: widths and heights of pictures, and how many have each, rising; none where they are not known. Class
            pictures are not among them.
    """

    shown: int
    distinct: int
    captions: int
    references: int = 0
    masks: int = 0
    shapes: tuple[tuple[tuple[int, int], int], ...] = ()

    def sizes_in(self, buckets: Buckets) -> tuple[Size, ...]:
        """Return the sizes that pictures are cut to; the largest that there may be where they are not known."""
        return tuple(self._counted(buckets)) or (buckets.most,)

    def shown_in(self, buckets: Buckets) -> int:
        """Return how many pictures an epoch shows, each at all of its sizes."""
        if not self.shapes:
            return self.shown * len(buckets.resolutions)
        sizes = sum(self._counted(buckets).values())
        return round(self.shown * sizes / sum(count for _, count in self.shapes))

    def pixels_in(self, buckets: Buckets, largest: Size) -> int:
        """Return the pixels of all distinct pictures at all of their sizes.

        Args:
            buckets: the sizes that they are cut to.
            largest: the size of those whose own is not known, such as class pictures.
        """
        known = sum(count for _, count in self.shapes)
        cut = sum(count * height * width for (height, width), count in self._counted(buckets).items())
        return cut + (self.distinct - known) * largest[0] * largest[1] * (1 if known else len(buckets.resolutions))

    def _counted(self, buckets: Buckets) -> dict[Size, int]:
        """Return how many pictures have each size, by size, rising; those of several sizes count in each."""
        shapes_2N = np.array([shape for shape, _ in self.shapes], dtype=np.int64).reshape(-1, 2).T
        counts_N = np.array([count for _, count in self.shapes], dtype=np.int64)
        return {size: int(counts_N[own].sum()) for size, own in buckets.group(*shapes_2N).items()}

    @classmethod
    def from_dataset(cls, dataset: Dataset, config: RunConfig) -> PictureCounts:
        """Count the pictures of a run that have been checked."""
        train, held_out = dataset.train.samples, dataset.held_out.samples
        captions = _count_captions(train, held_out, config)
        class_pictures, other_captions = _beside(config.data)
        shown, distinct = round(sum(sample.rate for sample in train)), len(train) + len(held_out) + class_pictures
        shapes = _shapes((*train, *held_out))
        pictures = dataset.train
        return cls(shown, distinct, captions + other_captions, pictures.references, pictures.masks, shapes)

    @classmethod
    def from_folders(cls, config: RunConfig) -> tuple[PictureCounts, tuple[ListedPicture, ...]]:
        """Count the pictures that the folders of a run list; none is decoded, so some may turn out to be unreadable.

        Returns:
            Their numbers, and those pictures whose sizes could be told, held-out ones too; of more than
            10,000 pictures none is opened.

        Raises:
            UserError: a folder or its captions are at fault, or all that is listed is left out.
        """
        data = config.data
        listings = read_sources(data)
        entries = [entry for listing in listings for entry in listing.entries]
        refuse_if_none(entries, [one for listing in listings for one in listing.rejected], data.sources[0].path)
        share = data.held_out if isinstance(data.held_out, float) else 0.0
        captions = _count_captions(entries, (), config)
        class_pictures, other_captions = _beside(data)
        shown = round(sum(entry.repeats * entry.weight for entry in entries) * (1 - share))
        references = max((len(entry.references) for entry in entries), default=0)
        masks = sum(entry.mask is not None for entry in entries)
        listed = _measured(entries)
        distinct, shapes = len(entries) + class_pictures, _shapes(listed)
        return cls(shown, distinct, captions + other_captions, references, masks, shapes), listed


@dataclass(frozen=True)
class ListedPicture:
    """A picture of a listing, of which the size has been read.

    Attributes:
        path: the file.
        width: in pixels, upright.
        height: in pixels, upright.
        rate: how often an epoch shows it at each of its sizes.
        frames: of a clip, as its headers say; 1 of a picture.
        frame_rate: frames a second of a clip; None: it is a picture.
    """

    path: Path
    width: int
    height: int
    rate: float
    frames: int = 1
    frame_rate: float | None = None


def _measured(entries: Sequence[Entry]) -> tuple[ListedPicture, ...]:
    if len(entries) > _MOST_OPENED:
        return ()
    sizes = [(entry, upright_size(entry.location)) for entry in entries]
    return tuple(
        ListedPicture(one.path, *size, one.repeats * one.weight, *(clip_length(one.location) or ()))
        for one, size in sizes
        if size is not None
    )


def _shapes(pictures: Iterable[ShapedPicture]) -> tuple[tuple[tuple[int, int], int], ...]:
    return tuple(sorted(Counter((one.width, one.height) for one in pictures).items()))


def _count_captions(shown: Sequence[Sample] | Sequence[Entry], held_out: Sequence[Sample], config: RunConfig) -> int:
    """Count the texts that a run encodes of its pictures' captions, at most: each order of shuffled tags is one."""
    draws = config.train.max_steps * config.train.batch_size * config.train.gradient_accumulation_steps
    epochs = -(-draws // max(1, sum(one.repeats for one in shown)))
    varied = sum(min(epochs * one.repeats, sum(tags.count(draws) for tags in one.tags)) for one in shown)
    written = {caption for one in shown for caption in one.captions}
    written -= {tags.text for one in shown for tags in one.tags}
    return min(varied, draws) + len(written | {sample.captions[0] for sample in held_out})


def _beside(data: DataConfig) -> tuple[int, int]:
    """Return the number of class pictures, and of captions beside the pictures' own: the class's, and the empty one."""
    class_pictures, class_captions = (0, 0) if data.prior is None else (data.prior.count, 1)
    return class_pictures, class_captions + (1 if data.caption_dropout else 0)
