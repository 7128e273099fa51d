"""The numbers of pictures and captions of a run, as far as they decide its memory and its schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from veneer.config.data_config import DataConfig
from veneer.config.schema import RunConfig
from veneer.data.bucket_table import ShapedPicture
from veneer.data.buckets import Buckets, Extent, Size
from veneer.data.manifest import Sample
from veneer.data.picture_header import upright_size
from veneer.data.preflight import Dataset, refuse_if_none
from veneer.data.sources.protocol import Entry
from veneer.data.sources.registry import read_sources

__all__ = ["ClipShape", "ListedPicture", "PictureCounts", "latent_pixels", "most_extent"]

_MOST_OPENED = 10_000
"""Pictures whose sizes are read for a plan: some seconds."""


class ClipShape(NamedTuple):
    """A clip as far as its place in the buckets goes."""

    width: int
    height: int
    frames: int
    frame_rate: float | None
    id: str = ""


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
        clips: the same of clips, with their frames.
    """

    shown: int
    distinct: int
    captions: int
    references: int = 0
    masks: int = 0
    shapes: tuple[tuple[tuple[int, int], int], ...] = ()
    clips: tuple[tuple[ClipShape, int], ...] = ()

    def extents_in(self, buckets: Buckets) -> tuple[Extent, ...]:
        """Return the sizes and frames that are trained on, rising; where they are unknown the largest possible ones."""
        found = {(*size, 1) for size in self._counted(buckets)} | self._counted_clips(buckets).keys()
        return tuple(sorted(found)) or (most_extent(buckets),)

    def shown_in(self, buckets: Buckets) -> int:
        """Return how many pictures and clips an epoch shows, each at all of its sizes."""
        if not self._known:
            return self.shown * len(buckets.resolutions)
        sizes = sum(self._counted(buckets).values()) + sum(self._counted_clips(buckets).values())
        return round(self.shown * sizes / self._known)

    def pixels_in(self, buckets: Buckets, largest: Extent) -> int:
        """Return the pixels of all distinct pictures at all of their sizes, as :func:`latent_pixels` counts clips'.

        Args:
            buckets: the sizes that they are cut to.
            largest: what those have whose own is not known, such as class pictures.
        """
        stride = buckets.clips.stride
        cut = sum(count * height * width for (height, width), count in self._counted(buckets).items())
        for shape, count in self.clips:
            spans = buckets.clips.starts(shape) or 0  # what begins anywhere is not kept
            cut += sum(count * spans * latent_pixels(extent, stride) for extent in _extents(shape, buckets))
        times = 1 if self._known else len(buckets.resolutions)
        return cut + (self.distinct - self._known) * latent_pixels(largest, stride) * times

    @property
    def _known(self) -> int:
        """How many pictures and clips there are whose shape is known."""
        return sum(count for _, count in (*self.shapes, *self.clips))

    def _counted_clips(self, buckets: Buckets) -> dict[Extent, int]:
        """Return how many clips are seen at each size and number of frames."""
        found: Counter[Extent] = Counter()
        for shape, count in self.clips:
            found.update(dict.fromkeys(_extents(shape, buckets), count))
        return dict(found)

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
        every, pictures = (*train, *held_out), dataset.train
        shapes = _shapes(one for one in every if one.frame_rate is None)
        clips = Counter(
            ClipShape(one.width, one.height, one.frames, one.frame_rate) for one in every if one.frame_rate is not None
        )
        found = tuple(sorted(clips.items()))
        return cls(shown, distinct, captions + other_captions, pictures.references, pictures.masks, shapes, found)

    @classmethod
    def from_folders(cls, config: RunConfig) -> tuple[PictureCounts, tuple[ListedPicture, ...]]:
        """Count the pictures that the folders of a run list; none is decoded, so some may turn out to be unreadable.

        Returns:
            Their numbers, and those pictures whose sizes could be told, held-out ones too; of more than
            10,000 pictures none is opened, and none where clips are seen, whose frames no header tells.

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
        listed = _measured(entries) if data.frames is None else ()
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
        frames: 1, for where clips are seen nothing is measured.
        frame_rate: None, likewise.
    """

    path: Path
    width: int
    height: int
    rate: float
    frames: int = 1
    frame_rate: float | None = None


def latent_pixels(extent: Extent, stride: int) -> int:
    """Return the pixels of a picture, of a clip those of as many frames as its latents have.

    Args:
        extent: height, width and frames.
        stride: frames that a frame of latents after the first one is of.
    """
    height, width, frames = extent
    return height * width * ((frames - 1) // stride + 1)


def most_extent(buckets: Buckets) -> Extent:
    """Return the largest size and the most frames that any picture or clip may get."""
    return *buckets.most, max(buckets.clips.counts, default=1)


def _extents(shape: ClipShape, buckets: Buckets) -> list[Extent]:
    frames = buckets.clips.count(shape)
    return [(*size, frames) for size in buckets.sizes(shape.width, shape.height)]


def _measured(entries: Sequence[Entry]) -> tuple[ListedPicture, ...]:
    if len(entries) > _MOST_OPENED:
        return ()
    sizes = [(entry, upright_size(entry.location)) for entry in entries]
    return tuple(ListedPicture(one.path, *size, one.repeats * one.weight) for one, size in sizes if size is not None)


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
