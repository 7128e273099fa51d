"""The numbers of pictures and captions of a run, as far as they decide its memory and its schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from veneer.config.schema import DataConfig, RunConfig
from veneer.data.manifest import Sample
from veneer.data.preflight import Dataset
from veneer.data.sources.protocol import Entry
from veneer.data.sources.registry import read_sources

__all__ = ["PictureCounts"]


@dataclass(frozen=True)
class PictureCounts:
    """The numbers of pictures and captions of a run.

    Attributes:
        shown: pictures of an epoch, repeats counted.
        distinct: pictures that are encoded, class pictures and held-out ones included.
        captions: distinct texts that are made of captions, at most.
        references: of each picture.
        masks: pictures that have one.
    """

    shown: int
    distinct: int
    captions: int
    references: int = 0
    masks: int = 0

    @classmethod
    def from_dataset(cls, dataset: Dataset, config: RunConfig) -> PictureCounts:
        """Count the pictures of a run that have been checked."""
        train, held_out = dataset.train.samples, dataset.held_out.samples
        captions = _count_captions(train, held_out, config)
        class_pictures, other_captions = _beside(config.data)
        shown, distinct = round(sum(sample.rate for sample in train)), len(train) + len(held_out) + class_pictures
        return cls(shown, distinct, captions + other_captions, dataset.train.references, dataset.train.masks)

    @classmethod
    def from_folders(cls, config: RunConfig) -> PictureCounts:
        """Count the pictures that the folders of a run list; none is opened, so some may turn out to be unreadable.

        Raises:
            UserError: a folder or its captions are at fault.
        """
        data = config.data
        entries = [entry for listing in read_sources(data) for entry in listing.entries]
        share = data.held_out if isinstance(data.held_out, float) else 0.0
        captions = _count_captions(entries, (), config)
        class_pictures, other_captions = _beside(data)
        shown = round(sum(entry.repeats * entry.weight for entry in entries) * (1 - share))
        references = max((len(entry.references) for entry in entries), default=0)
        masks = sum(entry.mask is not None for entry in entries)
        return cls(shown, len(entries) + class_pictures, captions + other_captions, references, masks)


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
