"""The schema of a run's whole configuration: frozen, typed, unknown keys rejected.

Every key has a default but ``base`` and ``data.sources``. The defaults are the usual ones for Stable Diffusion
LoRAs: rank 4, alpha = rank, the attention projections, AdamW at 1e-4. ``~`` in a path is the home folder; what relative
paths are relative to is said in ``config.paths``.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    model_validator,
)

from veneer.config.base_name import BaseName, as_plain
from veneer.config.colour import rgb
from veneer.files import open_home, opens_paths, url_of, user_path
from veneer.rng import MAX_SEED

__all__ = [
    "MAX_TOKEN_WINDOWS",
    "READ_METHODS",
    "AdapterConfig",
    "BaseConfig",
    "ColorJitterConfig",
    "ColumnsConfig",
    "DataConfig",
    "Density",
    "ObjectiveConfig",
    "OptimizerConfig",
    "OutputConfig",
    "PriorConfig",
    "RunConfig",
    "SampleConfig",
    "SourceConfig",
    "TargetPreset",
    "TextEncoderAdapterConfig",
    "TimestepShift",
    "TrackingConfig",
    "TrainConfig",
    "ValidationConfig",
    "WeightFormat",
]

T = TypeVar("T")


def _as_path(value: object) -> object:
    """Turn text into a path with its ``~`` opened; strict validation takes paths only."""
    return user_path(value) if isinstance(value, (str, Path)) else value


def _as_tuple(value: object) -> object:
    """Turn a list, which is what YAML and JSON have, into a tuple; strict validation takes tuples only."""
    return tuple(value) if isinstance(value, list) else value


def _as_several(value: object) -> object:
    """Turn a path alone into a tuple of one, and a list into a tuple."""
    return (value,) if isinstance(value, (str, Path)) else _as_tuple(value)


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty; leave the key out instead")
    return value


def _without_repeats(values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) < len(values):
        raise ValueError("names one twice")
    return values


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


def _word_or_folder(value: object) -> str:
    return "word" if value in ("alpha", "beside") else "folder"


def _number_or_word(value: object) -> str:
    return "word" if isinstance(value, str) else "number"


def _names_or_preset(value: object) -> str:
    """Take text for a preset if it is like one; other text should have been a list."""
    is_preset = isinstance(value, str) and get_close_matches(value, get_args(TargetPreset), n=1, cutoff=0.7)
    return "preset" if is_preset else "names"


def _trained(value: object) -> object:
    """Say of a method that only its files are read that it is not trained."""
    if value in READ_METHODS:
        raise ValueError(f"is {value}, whose files are read, merged and written, and which is not trained here")
    return value


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


READ_METHODS = ("loha", "lokr", "doha", "dokr", "oft", "boft", "glora", "ia3", "full", "norm", "replaced", "dylora")
"""Adapter methods whose files are read, and which are not trained."""
MAX_TOKEN_WINDOWS = 10
"""Most windows of a text encoder that a text may take."""
MIN_RESOLUTION = 8
"""Pixels of a resolution, at least."""

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Folder = Annotated[Path, BeforeValidator(_as_path)]
Place = Annotated[Folder, PlainSerializer(lambda path: url_of(path) or str(path), when_used="json")]
Folders = Annotated[tuple[Folder, ...], BeforeValidator(_as_several)]
NonBlank = Annotated[str, AfterValidator(_not_blank)]
FolderOrId = Annotated[NonBlank, AfterValidator(open_home)]


def _as_mapping(value: object) -> object:
    """Turn a base that has components into the mapping that it is written as."""
    return as_plain(value) if isinstance(value, BaseName) else value


def _text_or_parts(value: object) -> str:
    return "<parts>" if isinstance(value, (dict, BaseConfig)) else "<text>"


def _as_base(value: object) -> BaseName:
    if isinstance(value, BaseConfig):
        return BaseName(value.path, {name: str(path) for name, path in value.components.items()}, value.expert)
    return BaseName(str(value))


TargetPreset = Literal["attention", "attention_mlp", "all_linear"]
Names = Annotated[tuple[NonBlank, ...], Field(min_length=1), BeforeValidator(_as_tuple)]
Targets = Annotated[
    Annotated[Names, Tag("names")] | Annotated[TargetPreset, Tag("preset")], Discriminator(_names_or_preset)
]
Density = Literal["uniform", "high_noise", "logit_normal"]
TimestepShift = Annotated[
    Annotated[Positive, Tag("number")] | Annotated[Literal["resolution", "none"], Tag("word")],
    Discriminator(_number_or_word),
]
WeightFormat = Literal["none", "bfloat16", "float16", "bnb_nf4", "bnb_int8", "torchao_int8", "torchao_fp8"]
Resolution = Annotated[
    Annotated[int, Field(ge=MIN_RESOLUTION), Tag("number")]
    | Annotated[str, AfterValidator(_width_by_height), Tag("word")],
    Discriminator(_number_or_word),
]
Resolutions = Annotated[
    Annotated[Resolution, Tag("<one>")]
    | Annotated[
        tuple[Resolution, ...],
        Field(min_length=1),
        BeforeValidator(_as_tuple),
        AfterValidator(_without_repeats),
        Tag("<several>"),
    ],
    Discriminator(_one_or_several),
]
Templates = Annotated[
    tuple[Annotated[str, AfterValidator(_template)], ...], Field(min_length=1), BeforeValidator(_as_several)
]
Trackers = Annotated[tuple[Literal["tensorboard", "trackio", "wandb"], ...], BeforeValidator(_as_tuple)]
Formats = Annotated[
    tuple[Literal["diffusers", "kohya", "comfy", "peft"], ...],
    Field(min_length=1),
    BeforeValidator(_as_tuple),
    AfterValidator(_without_repeats),
]
ShareOrFolder = Annotated[
    Annotated[Share, Tag("share")] | Annotated[Folder, Tag("folder")], Discriminator(_share_or_folder)
]


WordOrFolder = Annotated[
    Annotated[Literal["alpha", "beside"], Tag("word")] | Annotated[Folder, Tag("folder")],
    Discriminator(_word_or_folder),
]


class _Section(BaseModel):
    # strict: "4" is not 4, true is not 1 and 4.5 is not a count, while 1 may stand for 1.0
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __hash__(self) -> int:
        """Return a hash of all values; those that are mappings have none of their own."""
        return hash(self.model_dump_json())


class BaseConfig(_Section):
    """A base whose parts do not all lie in one place."""

    text_key: ClassVar[str] = "path"
    """The key that is meant where the section is given as a text."""

    path: FolderOrId
    """What ``base`` is without components: a diffusers folder, a file with the denoiser and perhaps further parts, or a
    hub id."""
    components: dict[NonBlank, Folder] = {}
    """Where a part is taken from instead, by the pipeline's name of it: ``vae``, ``text_encoder``, ``tokenizer``; a
    file, the part's folder, or a diffusers folder that has it."""
    expert: Literal["high_noise", "low_noise"] | None = None
    """Which denoiser is trained, of a base that has one for much noise and one for little (Wan 2.2 A14B)."""


if TYPE_CHECKING:
    Base = BaseName
else:
    Base = Annotated[
        Annotated[FolderOrId, Tag("<text>")] | Annotated[BaseConfig, Tag("<parts>")],
        Discriminator(_text_or_parts),
        BeforeValidator(_as_mapping),
        AfterValidator(_as_base),
        PlainSerializer(as_plain),
    ]


class ColumnsConfig(_Section):
    """Which columns of a table, or which endings of a shard's members, are the picture and its text."""

    image: NonBlank | None = None
    """Column or ending of the pictures, e.g. ``image`` or ``jpg``; default: the only one that there is."""
    text: NonBlank | None = None
    """Column or ending of the captions, e.g. ``text`` or ``json``; ``json.caption`` is the field of a column; default:
    the one of a usual name."""


class SourceConfig(_Section):
    """One place with pictures."""

    path: Place
    """Folder, or ``.zip`` that is read without unpacking it, with ``metadata.jsonl``, ``.csv`` or ``.parquet``, or
    with a caption file such as ``a.txt`` beside each picture; its subfolders are read too. Or the ``.toml`` file of a
    dataset of kohya's scripts; ``.tar`` shards of webdataset or ``.parquet`` tables with pictures in them: one, a
    folder of them, or ``shards/{000..123}.tar``, which may be a URL for ``.tar``; or ``hub:owner/name``, a dataset of
    the hub."""
    repeats: Count = 1
    """How often an epoch shows each of its pictures; times the TOML's own ``num_repeats``."""
    weight: Positive = 1.0
    """How often its pictures are shown beside those of other sources, times ``repeats``: at 0.5 every other epoch."""
    captions: Literal["lines", "whole"] = "lines"
    """What is a caption in a caption file: each of its lines, of which a draw takes one; or the whole file, its lines
    joined by spaces."""
    tag_separator: Annotated[str, Field(min_length=1)] = ","
    """What parts the tags of a caption, for the keys below. They are a source's own, since where captions are sentences
    they would tear these apart."""
    shuffle_tags: bool = False
    """Show the tags of a caption in another order in each draw."""
    keep_tags: Annotated[int, Field(ge=0)] = 0
    """How many of the first tags keep their places, as ``keep_tokens`` of kohya's scripts; a ``|||`` in a caption parts
    them as well. Those with the trigger always do."""
    tag_dropout: Share = 0.0
    """Share of the other tags that is left out in each draw."""
    tag_orders: Count | None = None
    """How many texts a caption makes by these keys; default: each draw one of its own, all of which are
    encoded."""
    numbered_folders: bool = True
    """Read subfolders named ``10_sks cat`` as kohya's scripts do, if all pictures lie in such: ten repeats, and
    ``sks cat`` as the caption of a picture that has none."""
    follow_links: bool = False
    """Read what links that lead out of the folder lead to; otherwise such pictures are put aside."""
    split: NonBlank = "train"
    """Of a dataset of the hub: which of its splits."""
    columns: ColumnsConfig = ColumnsConfig()
    """Of tables and shards, where it cannot be told."""
    references: Folders = ()
    """For a base that edits: folder with the picture that each is made from by its caption, of the same name with any
    ending; a list of folders for several. A ``metadata.jsonl`` names them as ``reference_file_name``."""
    masks: WordOrFolder | None = None
    """Where masks are, which say what of a picture is learned, white, and what is not, black: ``alpha``, the pictures'
    alpha channels; ``beside``, files such as ``a-masklabel.png`` beside ``a.jpg``; or a folder with masks of the same
    names. A ``metadata.jsonl`` names them as ``mask_file_name``."""


class PriorConfig(_Section):
    """Prior preservation (Ruiz et al. 2023, DreamBooth, eq. 2): the class is kept while a subject is learned."""

    prompt: NonBlank
    """Names the class without the trigger, e.g. ``a cat emoji``."""
    count: Count = 32
    """Pictures of the class: the first ones of ``path``; those that it lacks are made by the base."""
    weight: Positive = 1.0
    """Weight of the prior loss beside the subject's."""
    path: Folder | None = None
    """Folder with pictures of the class; default: ``prior`` in the output folder."""


class ColorJitterConfig(_Section):
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


class DataConfig(_Section):
    """The pictures, and what is done to them before the model sees them."""

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1), BeforeValidator(_as_tuple)]
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
    held_out: ShareOrFolder = 0.1
    """Share of the pictures kept from training to measure on (of ten or more at least one; from 100 on each by its own
    hash, so that added pictures move none), or a folder of such."""
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


class TextEncoderAdapterConfig(_Section):
    """An adapter on a text encoder, saved in the same file under the text encoder's name."""

    rank: Count = 4
    """Rank of delta W."""
    alpha: Positive | None = None
    """Strength alpha/rank; default: the rank."""
    target_modules: Targets | None = None
    """Names, or endings of dotted paths, of the text encoder's layers, or a preset as of the denoiser; default: the
    base's own, of its attention."""
    blocks: Names | None = None
    """Blocks of the text encoder that it is confined to, e.g. ``[layers.6-11]``; default: none."""
    dropout: Share = 0.0
    """Share of the adapter's input that is dropped while training."""
    learning_rate: Positive = 5e-5
    """Learning rate; text encoders overcook sooner than the denoiser."""


class AdapterConfig(_Section):
    """The adapter that is trained: ``h = W0 x + (alpha/rank) B A x`` (Hu et al. 2021, section 4.1)."""

    method: Annotated[Literal["lora", "dora"], BeforeValidator(_trained)] = "lora"
    """LoRA, or DoRA (Liu et al. 2024), which trains a magnitude of each output as well."""
    rank: Count = 4
    """Rank of delta W."""
    alpha: Positive | None = None
    """Strength alpha/rank; default: the rank, which makes it 1."""
    target_modules: Targets | None = None
    """Names, or endings of dotted paths, of the layers that get an adapter, or a preset: ``attention``;
    ``attention_mlp``, without what makes scales and shifts of the time; ``all_linear``, every linear layer of the
    blocks; default: the base's own, of its attention."""
    blocks: Names | None = None
    """Blocks that the adapter is confined to, e.g. ``[transformer_blocks.0-9, single_transformer_blocks.5]``; default:
    none."""
    dropout: Share = 0.0
    """Share of the adapter's input that is dropped while training."""
    training_adapter: Folder | None = None
    """File of an adapter that is in a distilled base while it is trained and scored, so that training does not have to
    take the distillation back; it is no part of the result, nor of what is painted."""
    text_encoders: dict[NonBlank, TextEncoderAdapterConfig] = {}
    """Text encoders to adapt as well, each by its name in the base: ``text_encoder``, ``text_encoder_2``; ``{}`` is
    enough for each."""


class ObjectiveConfig(_Section):
    """The loss: the base's own parameterisation x density of timesteps x weighting."""

    timestep_density: Density | None = None
    """Density the timesteps are drawn from; default: the base's own. ``high_noise`` prefers the early steps of sampling
    (layout, colour), ``logit_normal`` the middle ones (Esser et al. 2024, section 3.1)."""
    logit_mean: float | None = None
    """Mean of logit(t) under ``logit_normal``: below 0 prefers late steps of sampling (detail); default: the base's
    own."""
    logit_std: Positive | None = None
    """Standard deviation of logit(t) under ``logit_normal``; default: the base's own."""
    timestep_shift: TimestepShift | None = None
    """Shift s of the timesteps that were drawn, s t / (1 + (s - 1) t) (Esser et al. 2024, eq. 23): above 1 towards the
    noise. ``resolution``: the one that the base's scheduler has for the picture's size; ``none``: 1; default: the
    base's own."""
    weighting: Literal["none", "min_snr"] = "none"
    """Weight of each timestep's loss."""
    snr_gamma: Positive = 5.0
    """Cap of the signal-to-noise ratio (Hang et al. 2023, Min-SNR, section 3.4)."""
    unmasked_weight: Share = 0.0
    """Of pictures with a mask, the weight of the loss outside of it: 0 learns nothing there, 0.1 keeps backgrounds from
    drifting."""
    normalize_masked_area: bool = True
    """Of pictures with a mask, whether the loss is a mean over the mask, so that small masks count as much as large
    ones, or over the whole picture."""


class OptimizerConfig(_Section):
    """AdamW on the adapter's parameters only (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    """Which optimiser."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    betas: Annotated[tuple[Share, Share], BeforeValidator(_as_tuple)] = (0.9, 0.999)
    """Decay of the gradient's first and second moments."""
    epsilon: Positive = 1e-8
    """Number added to the denominator."""


class TrainConfig(_Section):
    """The training: how long, and how."""

    max_steps: Count = 400
    """Optimiser steps."""
    batch_size: Count = 4
    """Pictures a forward pass."""
    gradient_accumulation_steps: Count = 1
    """Forward passes an optimiser step; batch_size x gradient_accumulation_steps pictures make one gradient."""
    learning_rate: Positive = 1e-4
    """Learning rate of the denoiser's adapter."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Which optimiser, and its settings."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up: not, or to zero at the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises from zero."""
    max_grad_norm: Positive | None = 1.0
    """Gradients are scaled down to this norm; null: never."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an average over the steps, e.g. 0.99, which is saved and painted instead of the last step's adapter."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen model's arithmetic; the adapter stays float32."""
    memory: Literal["exact", "lean", "leaner", "checkpoint"] = "exact"
    """How little is kept for the backward pass, with the same gradients up to rounding: all; nothing that is not read
    or that norms and activations make again; no outputs of linear layers either; the inputs of blocks alone."""
    cuda_graphs: bool = True
    """On a CUDA GPU, launch a forward and backward pass as one recorded graph; a run with dropout, with text encoders
    that learn, or with pictures of more than 40 sizes never does."""
    quantization: WeightFormat = "none"
    """What the frozen weights of the networks that learn are held in: float32, 16 bits, or linear layers in fewer by
    bitsandbytes or torchao, each an extra of its name; the adapter stays float32."""
    text_encoder_quantization: WeightFormat | None = None
    """What text encoders that do not learn are held in: the formats of ``quantization``; default: float32, but of a
    base whose text encoders are large the 16-bit numbers of their files, of which they make the same."""
    offload: bool = True
    """Encode first all that the run will see, then let autoencoder and text encoder leave memory, but for painting and
    scoring; those that a step needs stay. The denoiser of a large base is read only then."""
    offload_blocks: Annotated[int, Field(ge=0)] = 0
    """Number of the denoiser's repeated blocks whose frozen weights wait in CPU memory and are copied to the GPU before
    they are needed, two of them at a time; the results have the same bits. There are no CUDA graphs then. 0: none."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do in a step whose loss or gradient is not finite: end the run, or leave the adapter as it is."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 100
    """Steps between checkpoints, from which a stopped run goes on; the last step has one too. 0: when stopped only."""
    keep_checkpoints: Count = 2
    """How many checkpoints are kept, the newest ones."""

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainConfig:
        if self.warmup_steps >= self.max_steps:
            what = f"warmup_steps is {self.warmup_steps}, but max_steps is {self.max_steps}"
            raise ValueError(f"{what}, so the warm-up never ends")
        return self


class SampleConfig(_Section):
    """Pictures made while and after training."""

    every: Annotated[int, Field(ge=0)] = 0
    """Steps between sample sheets; 0: none while training."""
    prompts: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    """What to paint; default: captions of held-out pictures, with their references."""
    references: Annotated[tuple[Folders, ...], BeforeValidator(_as_several)] = ()
    """For a base that edits: the picture that each prompt is applied to, or a list of several; one alone is for all."""
    steps: Count = 25
    """Denoising steps."""
    guidance: Annotated[float, Field(ge=1)] = 4.0
    """Classifier-free guidance (Ho and Salimans 2022); 1: none."""
    frames: Count = 1
    """Frames of each clip, of a base that was trained on clips: 4 k + 1 of Wan, 8 k + 1 of LTX-Video. 1: pictures."""

    @model_validator(mode="after")
    def _has_as_many_references(self) -> SampleConfig:
        prompts, references = len(self.prompts), len(self.references)
        if references not in (0, prompts) and (references > 1 or not prompts):
            raise ValueError(
                f"references are {references}, but prompts are {prompts}; name one for each, or one for all"
            )
        return self


class TrackingConfig(_Section):
    """Trackers that get curves and sample sheets beside ``run.jsonl``; each is an extra of the same name."""

    trackers: Trackers | None = None
    """Any of them, or ``[]`` for none; default: TensorBoard, if it is installed."""
    project: NonBlank = "veneer"
    """Project that the run belongs to in Trackio and at Weights & Biases."""


class ValidationConfig(_Section):
    """The held-out score."""

    draws: Count = 8
    """Noise draws a picture, spread evenly over the timesteps."""
    pictures: Count = 64
    """Pictures of each kind that are measured on, at most: held-out ones, those trained on, those of other things."""
    every: Annotated[int, Field(ge=0)] = 0
    """Steps between scores while training; the last step has one too; the best adapter is kept. 0: only at the end."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Training stops after so many scores in a row that are not better than the best one; 0: never."""

    @model_validator(mode="after")
    def _has_something_to_wait_for(self) -> ValidationConfig:
        if self.patience and not self.every:
            raise ValueError(f"patience is {self.patience}, but every is 0, so there is no score to wait for")
        return self


class OutputConfig(_Section):
    """The results of a run."""

    dir: Folder = Path("runs/adapter")
    """Folder of the run's results."""
    formats: Formats = ("diffusers", "kohya")
    """Formats that the adapter is written in, each beside the others: ``diffusers`` for diffusers, ``kohya`` for A1111,
    Forge, ComfyUI and kohya's scripts, ``comfy`` for ComfyUI alone, ``peft``. The first is saved before all else."""


class RunConfig(_Section):
    """The configuration of one run."""

    base: Base
    """``bundled``, a diffusers folder, a ``.safetensors`` file, or a hub id. Where parts of it lie elsewhere, a
    mapping: ``path`` and ``components``."""
    data: DataConfig
    """The pictures."""
    seed: Seed = 0
    """Seed of everything random."""
    output: OutputConfig = OutputConfig()
    """The results."""
    adapter: AdapterConfig = AdapterConfig()
    """What is trained."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The loss."""
    train: TrainConfig = TrainConfig()
    """The training."""
    sample: SampleConfig = SampleConfig()
    """Pictures on the way."""
    tracking: TrackingConfig = TrackingConfig()
    """The trackers."""
    validation: ValidationConfig = ValidationConfig()
    """The held-out score."""

    @opens_paths
    def in_folder(self, folder: Path) -> RunConfig:
        """Return the same configuration with its results in another folder."""
        return self.model_copy(update={"output": self.output.model_copy(update={"dir": folder})})
