"""The section ``data`` of a config: the pictures, and what is done to them before the model sees them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from veneer.config.colour import rgb
from veneer.config.section import Section
from veneer.config.source_config import SourceConfig
from veneer.config.values import (
    Count,
    Folder,
    NonBlank,
    Positive,
    Share,
    as_several,
    as_tuple,
    number_or_word,
    without_repeats,
)

__all__ = ["MAX_TOKEN_WINDOWS", "ColorJitterConfig", "DataConfig", "PriorConfig"]

MAX_TOKEN_WINDOWS = 10
"""Most windows of a text encoder that a text may take."""
MIN_RESOLUTION = 8
"""Pixels of a resolution, at least."""


def _colour(value: str) -> str:
    rgb(value)
    return value


def _template(value: str) -> str:
    for name in ("{caption}", "{trigger}"):
        if value.count(name) > 1:
            raise ValueError(f"has {name} more than once")
    other = re.search(r"\{[^{}]*\}", value.replace("{caption}", "").replace("{trigger}", ""))
    if other is not None:
        raise ValueError(f"has {other[0]}, and what is filled in is {{caption}} and {{trigger}}")
    if "{caption}" not in value and "{trigger}" not in value:
        raise ValueError("has neither {caption} nor {trigger}")
    return value


def _share_or_folder(value: object) -> str:
    return "folder" if isinstance(value, (str, Path)) else "share"


def _one_or_more(value: object) -> object:
    """Turn a number alone into a tuple of one, and a list into a tuple."""
    return (value,) if isinstance(value, int) else as_tuple(value)


def _one_or_several(value: object) -> str:
    return "<several>" if isinstance(value, (list, tuple)) else "<one>"


def _width_by_height(value: str) -> str:
    """Check that a text is a width and a height in pixels, and write it as ``832x1216``."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*[xX\u00d7]\s*(\d{1,6})\s*", value)
    if match is None:
        raise ValueError(f"is {value!r}, but should be a number, or width and height such as 832x1216")
    width, height = map(int, match.groups())
    if min(width, height) < MIN_RESOLUTION:
        raise ValueError(f"is {value!r}, but sides should be at least {MIN_RESOLUTION}")
    return f"{width}x{height}"


Resolution = Annotated[
    Annotated[int, Field(ge=MIN_RESOLUTION), Tag("number")]
    | Annotated[str, AfterValidator(_width_by_height), Tag("word")],
    Discriminator(number_or_word),
]
Resolutions = Annotated[
    Annotated[Resolution, Tag("<one>")]
    | Annotated[
        tuple[Resolution, ...],
        Field(min_length=1),
        BeforeValidator(as_tuple),
        AfterValidator(without_repeats),
        Tag("<several>"),
    ],
    Discriminator(_one_or_several),
]
Frames = Annotated[
    tuple[Count, ...], Field(min_length=1), BeforeValidator(_one_or_more), AfterValidator(without_repeats)
]
Templates = Annotated[
    tuple[Annotated[str, AfterValidator(_template)], ...], Field(min_length=1), BeforeValidator(as_several)
]
ShareOrFolder = Annotated[
    Annotated[Share, Tag("share")] | Annotated[Folder, Tag("folder")], Discriminator(_share_or_folder)
]


class PriorConfig(Section):
    """Prior preservation (Ruiz et al. 2023, DreamBooth, eq. 2): the class is kept while a subject is learned."""

    prompt: NonBlank
    """Names the class without the trigger, e.g. ``a cat emoji``."""
    count: Count = 32
    """Pictures of the class: the first ones of ``path``; those that it lacks are made by the base."""
    weight: Positive = 1.0
    """Weight of the prior loss beside the subject's."""
    path: Folder | None = None
    """Folder with pictures of the class; default: ``prior`` in the output folder."""


class ColorJitterConfig(Section):
    """How far the colours of a picture are changed in each draw, at random."""

    brightness: Share = 0.0
    """Most by which all values are made brighter or darker, as a share."""
    contrast: Share = 0.0
    """Most by which contrast is raised or lowered, as a share."""
    saturation: Share = 0.0
    """Most by which colours are made stronger or weaker, as a share."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Most by which hues are turned on the colour circle, in turns: 0.02 is little, 0.5 is all the way round."""

    @property
    def is_on(self) -> bool:
        """Whether any colour is changed."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0


class DataConfig(Section):
    """The pictures, and what is done to them before the model sees them."""

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1), BeforeValidator(as_tuple)]
    """The folders of pictures."""
    trigger: NonBlank | None = None
    """Words that call the adapter; added to each caption that lacks them, alone where there is no caption."""
    trigger_placement: Literal["end", "start"] = "end"
    """Where the trigger is added. What stands first is not lost where a caption is too long."""
    caption_template: Templates | None = None
    """Text that each caption is put into at ``{caption}``, with the trigger at ``{trigger}``: ``a photo of {caption}``;
    or a list of several, of which a draw takes one. One without ``{caption}`` is for pictures that have none."""
    prompt_weights: Literal["refuse", "text", "strip"] = "refuse"
    """What to do about captions with the syntax of prompts, such as ``(red:1.2)`` or ``<lora:a:1>``: refuse them, train
    on them to the letter, or take it out and leave the words."""
    resolution: Resolutions | None = None
    """How large pictures are seen, in pixels: the side of a square of that area; or width and height, such as
    ``832x1216``, that all are cut to; or a list of such, at each of which each picture is trained. All are multiples of
    what the base needs, mostly 16 to 64; default: the base's own."""
    aspect: Literal["buckets", "square"] = "buckets"
    """What a picture keeps of its shape: ``buckets``, nearly all of it, at the area of ``resolution``; ``square``, what
    a square has of it."""
    upscale: bool = False
    """Enlarge pictures that are smaller than ``resolution``; else they are trained at their own size. Squares and sizes
    such as ``832x1216`` are always filled."""
    frames: Frames | None = None
    """How many frames of a clip are seen, for a base of clips: a number, or a list such as ``[17, 33]``, of which each
    clip gets the most that it has. Pictures have one. Default: clips are put aside, animated pictures are their first
    frame."""
    frame_extraction: Literal["chunk", "random", "head"] = "chunk"
    """Which part of a longer clip a draw sees: ``chunk``, one of as many parts as fit into it, side by side;
    ``random``, any, which is encoded anew in each step; ``head``, its beginning."""
    frame_rate: Positive | None = None
    """Frames a second at which clips are seen, whatever their own; default: those that the base was trained on."""
    held_out: ShareOrFolder = 0.1
    """Share of the pictures kept from training to measure on (of ten or more at least one; from 100 on each by its own
    hash, so that added pictures move none), or a folder of such."""
    split_from: Folder | None = None
    """Folder of an earlier run whose split is kept: what it was trained on, and what looks like that, is trained on,
    what it held out stays held out, and of other pictures each by its own hash; default: none."""
    max_rejected: Share = 0.75
    """Share of the pictures that may be broken, or else of no use, without the run being stopped before it trains."""
    background: Annotated[str, AfterValidator(_colour)] = "white"
    """Colour that transparent pictures are laid on: a name, or ``"#rrggbb"`` in quotes."""
    crop: Literal["center", "random"] = "center"
    """Which part is cut from a picture whose shape is not that of its size."""
    crop_jitter: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Most by which each draw zooms into its cut, as a share of the sides, at a place of its own: 0.1 shows 81 % of the
    area or more."""
    flip: bool = False
    """Mirror half of the draws, left to right, but of pictures whose captions say left or right; wrong for text and
    for faces that are not symmetric."""
    color_jitter: ColorJitterConfig = ColorJitterConfig()
    """Change the colours of each draw; wrong for styles, whose colours are what is to be learned."""
    shuffle_window: Count | None = None
    """How many pictures that follow each other in shards read by URL are shuffled among themselves; the shards come in
    another order in each epoch; default: 10,000. Pictures on disk are always shuffled as a whole."""
    caption_dropout: Share = 0.0
    """Share of draws with an empty caption, which trains the unconditional branch of guidance."""
    token_windows: Annotated[int, Field(ge=1, le=MAX_TOKEN_WINDOWS)] = 1
    """How many windows of the text encoder's length a caption or prompt takes: 3 of Stable Diffusion's 75 tokens read
    225. Each is encoded alone and all are joined, in training and painting alike; longer texts are cut."""
    cache: Folder | None = None
    """Folder that keeps latents and embeddings of captions for later runs; default: they are kept in memory only."""
    workers: Annotated[int, Field(ge=0, le=64)] = 2
    """How many workers decode the pictures of the next step while one is done, and those that are encoded first; the
    results are the same. 0: each is decoded when it is needed."""
    worker_type: Literal["thread", "process"] = "thread"
    """What workers are: threads, or processes of their own, which take seconds to start and some 300 MB each."""
    prior: PriorConfig | None = None
    """Set it to teach a subject without losing its class."""

    @model_validator(mode="after")
    def _has_what_templates_name(self) -> DataConfig:
        if self.trigger is None and any("{trigger}" in template for template in self.caption_template or ()):
            raise ValueError("caption_template has {trigger}, and trigger is not set")
        return self

    @model_validator(mode="after")
    def _has_one_split(self) -> DataConfig:
        if self.split_from is not None and isinstance(self.held_out, Path):
            raise ValueError("split_from keeps the split of a run, and held_out is a folder; leave one of them out")
        return self
