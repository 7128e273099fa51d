"""The entries of ``data.sources`` of a config: one place with pictures each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, PlainSerializer, Tag

from veneer.config.section import Section
from veneer.config.values import Count, Folder, Folders, NonBlank, Positive, Share
from veneer.files import url_of

__all__ = ["ColumnsConfig", "SourceConfig"]


def _word_or_folder(value: object) -> str:
    return "word" if value in ("alpha", "beside") else "folder"


Place = Annotated[Folder, PlainSerializer(lambda path: url_of(path) or str(path), when_used="json")]
WordOrFolder = Annotated[
    Annotated[Literal["alpha", "beside"], Tag("word")] | Annotated[Folder, Tag("folder")],
    Discriminator(_word_or_folder),
]


class ColumnsConfig(Section):
    """Which columns of a table, or which endings of a shard's members, are the picture and its text."""

    image: NonBlank | None = None
    """Column or ending of the pictures, e.g. ``image`` or ``jpg``; default: the only one that there is."""
    text: NonBlank | None = None
    """Column or ending of the captions, e.g. ``text`` or ``json``; ``json.caption`` is the field of a column; default:
    the one of a usual name."""


class SourceConfig(Section):
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
    image_sequences: Positive | None = None
    """Take each subfolder of pictures for a clip of so many frames a second, by the numbers in their names; its
    captions are beside it: ``walk.txt`` for ``walk``. Default: each picture is one."""
    masks: WordOrFolder | None = None
    """Where masks are, which say what of a picture is learned, white, and what is not, black: ``alpha``, the pictures'
    alpha channels; ``beside``, files such as ``a-masklabel.png`` beside ``a.jpg``; or a folder with masks of the same
    names. A ``metadata.jsonl`` names them as ``mask_file_name``."""
