"""The numbers of pictures and captions of a run, as far as they decide its memory and its schedule."""

from __future__ import annotations

from dataclasses import dataclass

from veneer.config.schema import DataConfig, RunConfig
from veneer.data.preflight import Dataset
from veneer.data.sources.registry import read_source

__all__ = ["PictureCounts"]


@dataclass(frozen=True)
class PictureCounts:
    """The numbers of pictures and captions of a run.

    Attributes:
        shown: pictures of an epoch, repeats counted.
        distinct: pictures that are encoded, class pictures and held-out ones included.
        captions: distinct captions.
        references: of each picture.
    """

    shown: int
    distinct: int
    captions: int
    references: int = 0

    @classmethod
    def from_dataset(cls, dataset: Dataset, config: RunConfig) -> PictureCounts:
        """Count the pictures of a run that have been checked."""
        train, held_out = dataset.train.samples, dataset.held_out.samples
        captions = {caption for sample in train for caption in sample.captions}
        captions |= {sample.captions[0] for sample in held_out}
        class_pictures, other_captions = _beside(config.data)
        shown, distinct = round(sum(sample.rate for sample in train)), len(train) + len(held_out) + class_pictures
        return cls(shown, distinct, len(captions) + other_captions, dataset.train.references)

    @classmethod
    def from_folders(cls, config: RunConfig) -> PictureCounts:
        """Count the pictures that the folders of a run list; none is opened, so some may turn out to be unreadable.

        Raises:
            UserError: a folder or its captions are at fault.
        """
        data = config.data
        entries = [entry for source in data.sources for entry in read_source(source, data.trigger).entries]
        share = data.held_out if isinstance(data.held_out, float) else 0.0
        captions = {caption for entry in entries for caption in entry.captions}
        class_pictures, other_captions = _beside(data)
        shown = round(sum(entry.repeats * entry.weight for entry in entries) * (1 - share))
        references = max((len(entry.references) for entry in entries), default=0)
        return cls(shown, len(entries) + class_pictures, len(captions) + other_captions, references)


def _beside(data: DataConfig) -> tuple[int, int]:
    """Return the number of class pictures, and of captions beside the pictures' own: the class's, and the empty one."""
    class_pictures, class_captions = (0, 0) if data.prior is None else (data.prior.count, 1)
    return class_pictures, class_captions + (1 if data.caption_dropout else 0)
