"""Choose the text that one draw shows of a sample's captions: a pure function of (seed, draw, sample)."""

from __future__ import annotations

from veneer.config.data_config import DataConfig
from veneer.data.loader import SampleDraw
from veneer.data.manifest import Sample
from veneer.data.tags import TagCaption
from veneer.rng import uniform

__all__ = ["all_texts", "caption_of"]


def caption_of(draw: SampleDraw, config: DataConfig, seed: int) -> str:
    """Return the caption of one draw: one of the sample's, or at the rate of ``caption_dropout`` none."""
    if uniform(seed, draw.draw_index, draw.sample.id, "caption dropout") < config.caption_dropout:
        return ""
    captions = draw.sample.captions
    caption = captions[int(uniform(seed, draw.draw_index, draw.sample.id, "caption") * len(captions))]
    tags = _tags_of(draw.sample, caption)
    return caption if tags is None else tags.shown(seed, draw.draw_index, draw.sample.id)


def all_texts(sample: Sample, config: DataConfig, seed: int) -> tuple[str, ...] | None:
    """Return all that draws of a sample can show as its caption; None where each makes a text of its own."""
    texts = [""] if config.caption_dropout else []
    for caption in sample.captions:
        tags = _tags_of(sample, caption)
        shown = (caption,) if tags is None else tags.all_shown(seed, sample.id)
        if shown is None:
            return None
        texts += shown
    return tuple(dict.fromkeys(texts))


def _tags_of(sample: Sample, caption: str) -> TagCaption | None:
    """Return how draws change one of a sample's captions; None: they do not."""
    return next((one for one in sample.tags if one.text == caption), None)
