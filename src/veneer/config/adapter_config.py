"""The section ``adapter`` of a config: what is trained."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag

from veneer.config.section import Section
from veneer.config.values import Count, Folder, Names, NonBlank, Positive, Share

__all__ = ["READ_METHODS", "AdapterConfig", "TargetPreset", "TextEncoderAdapterConfig"]

READ_METHODS = ("loha", "lokr", "doha", "dokr", "oft", "boft", "glora", "ia3", "full", "norm", "replaced", "dylora")
"""Adapter methods whose files are read, and which are not trained."""


def _names_or_preset(value: object) -> str:
    """Take text for a preset if it is like one; other text should have been a list."""
    is_preset = isinstance(value, str) and get_close_matches(value, get_args(TargetPreset), n=1, cutoff=0.7)
    return "preset" if is_preset else "names"


def _trained(value: object) -> object:
    """Say of a method that only its files are read that it is not trained."""
    if value in READ_METHODS:
        raise ValueError(f"is {value}, whose files are read, merged and written, and which is not trained here")
    return value


TargetPreset = Literal["attention", "attention_mlp", "all_linear"]
Targets = Annotated[
    Annotated[Names, Tag("names")] | Annotated[TargetPreset, Tag("preset")], Discriminator(_names_or_preset)
]


class TextEncoderAdapterConfig(Section):
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


class AdapterConfig(Section):
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
    text_encoders: dict[NonBlank, TextEncoderAdapterConfig] = Field(default_factory=dict)
    """Text encoders to adapt as well, each by its name in the base: ``text_encoder``, ``text_encoder_2``; ``{}`` is
    enough for each."""
