"""The pictures and captions of a run, read as evidence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from veneer.config.schema import RunConfig
from veneer.data.buckets import SmallPictures
from veneer.data.preflight import Dataset, survey
from veneer.data.sources.registry import read_sources
from veneer.doctor.evidence import CaptionStatistics, PictureCounts
from veneer.doctor.readers.log import picture_counts
from veneer.errors import UserError
from veneer.run.events import Surveyed

__all__ = ["caption_statistics", "count_pictures", "survey_pictures"]

_SURVEYED_UNASKED = 400
"""Pictures that are surveyed again without being asked to: a second or two."""
_SHARED_WORD = 0.9
"""Share of the pictures in whose captions a word must stand to count as shared."""
_MAX_EXAMPLES = 3


def survey_pictures(config: RunConfig, logged: PictureCounts | None, *, required: bool) -> Dataset | None:
    """Survey a run's pictures again.

    Args:
        config: the run's configuration.
        logged: counts of its log.
        required: survey them however many there are.

    Returns:
        The pictures; None where they are gone, or many and not required.

    Raises:
        UserError: they are required and gone.
    """
    try:
        return survey(config.data) if required or _count(config, logged) <= _SURVEYED_UNASKED else None
    except UserError:
        if required:
            raise
        return None


def _count(config: RunConfig, logged: PictureCounts | None) -> int:
    if logged is not None:
        return logged.train + logged.held_out
    return sum(len(listing.entries) for listing in read_sources(config.data))


def count_pictures(config: RunConfig, logged: PictureCounts | None, dataset: Dataset | None) -> PictureCounts:
    """Return the counts of the log, else of the pictures as they are now, with what a survey of them adds."""
    if dataset is None:
        return logged or picture_counts(0, 0, {})
    now = Surveyed.of(dataset)
    return _with_survey(logged or picture_counts(now.train, now.held_out, now.rejected), config, dataset)


def _with_survey(counts: PictureCounts, config: RunConfig, dataset: Dataset) -> PictureCounts:
    train = {sample.path for sample in dataset.train.samples}
    held_out = {sample.path for sample in dataset.held_out.samples}
    near = {path for pair in dataset.near if train.issuperset(pair) for path in pair}
    leaked = {path for pair in dataset.near for path in pair if path in held_out and not held_out.issuperset(pair)}
    sides = {sample.path: min(sample.width, sample.height) for sample in dataset.train.samples}
    small = {sample.path for sample in SmallPictures.among(dataset.train.samples, config.data).samples}
    return replace(
        counts,
        duplicates=len(dataset.copies),
        near_duplicates=len(near),
        leaked=len(leaked),
        small=len(small),
        smallest=min(sides.values()),
        near_duplicate_examples=_examples(near),
        small_examples=_examples(small),
    )


def _examples(paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in paths)[:_MAX_EXAMPLES])


def caption_statistics(config: RunConfig, dataset: Dataset | None) -> CaptionStatistics | None:
    """Return statistics of the captions of surveyed pictures, else of those in the folders; None if these are gone."""
    if dataset is not None:
        return _statistics(config, [sample.captions for sample in dataset.train.samples])
    try:
        folders = read_sources(config.data)
    except UserError:
        return None
    return _statistics(config, [entry.captions for folder in folders for entry in folder.entries])


def _statistics(config: RunConfig, captions: Sequence[Sequence[str]]) -> CaptionStatistics:
    added = set(_words(" ".join((config.data.trigger or "", *map(_own_words, config.data.caption_template or ())))))
    words_by_picture = [{word for caption in own for word in _words(caption)} - added for own in captions]
    counts = Counter(word for words in words_by_picture for word in words)
    shares = {word: count / len(captions) for word, count in counts.most_common()}
    shared = {word: share for word, share in shares.items() if share >= _SHARED_WORD}
    # in several templates, one caption for all pictures is one still
    distinct = {tuple(own) for own in captions}
    return CaptionStatistics(len(captions), len(distinct), shared, captions[0][0])


def _own_words(template: str) -> str:
    """Return what a template of captions says itself."""
    return re.sub(r"\{(caption|trigger)\}", " ", template)


def _words(text: str) -> list[str]:
    return [word.lower() for word in re.findall(r"\w[\w'-]*", text)]
