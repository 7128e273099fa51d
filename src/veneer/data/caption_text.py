"""Choose the text that one draw shows of a sample's captions: a pure function of (seed, draw, sample)."""

from __future__ import annotations

from veneer.config.schema import DataConfig
from veneer.data.loader import SampleDraw
from veneer.data.manifest import Sample
from veneer.rng import uniform

__all__ = ["all_texts", "caption_of"]


def caption_of(draw: SampleDraw, config: DataConfig, seed: int) -> str:
    """Return the caption of one draw: one of the sample's, or at the rate of ``caption_dropout`` none."""
    if uniform(seed, draw.draw_index, draw.sample.id, "caption dropout") < config.caption_dropout:
        return ""
    captions = draw.sample.captions
    return captions[int(uniform(seed, draw.draw_index, draw.sample.id, "caption") * len(captions))]


def all_texts(sample: Sample, config: DataConfig) -> tuple[str, ...]:
    """Return all that draws of a sample can show as its caption, each text once."""
    return tuple(dict.fromkeys((*sample.captions, *(("",) if config.caption_dropout else ()))))
