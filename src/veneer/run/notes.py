"""What can be said of the pictures only once the base is known."""

from __future__ import annotations

from veneer.config.schema import RunConfig
from veneer.data.notes import note_small
from veneer.data.preflight import Dataset
from veneer.family.protocol import Family

__all__ = ["notes_on"]


def notes_on(pictures: Dataset, config: RunConfig, family: Family) -> list[str]:
    """What its user may want to know of a run before it starts, a sentence each.

    Args:
        pictures: from ``survey``, which has told of small ones where the config names a resolution.
        config: as the user wrote it.
        family: the base.
    """
    small = [] if config.data.resolution else note_small(pictures.train.samples, family.resolution)
    return [*small, *_cut_captions(pictures, config, family)]


def _cut_captions(pictures: Dataset, config: RunConfig, family: Family) -> list[str]:
    samples = (*pictures.train.samples, *pictures.held_out.samples)
    sources = {caption: str(sample.path) for sample in samples for caption in sample.captions}
    sources |= {prompt: "sample.prompts" for prompt in config.sample.prompts}
    if config.data.prior is not None:
        sources[config.data.prior.prompt] = "data.prior.prompt"
    long = family.overlong(list(sources))
    if not long:
        return []
    worst = max(long, key=lambda caption: long[caption])
    count = f"{len(long)} of {len(sources)} captions {'is' if len(long) == 1 else 'are'}"
    return [
        f"{count} longer than the {family.text_length} tokens that the text encoder reads, so the rest has no say; "
        f"the longest has {long[worst]}: {sources[worst]}"
    ]
