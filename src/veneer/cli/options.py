"""Options that several verbs have, and the refusal of those that have no effect."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from veneer.errors import UserError
from veneer.files import open_home, user_path

__all__ = [
    "NUMBER",
    "AdapterFile",
    "Base",
    "LayersBase",
    "NewFile",
    "Overrides",
    "PictureSource",
    "Preset",
    "RunBase",
    "Scale",
    "ToFormat",
    "Trigger",
    "WeightedAdapter",
    "WeightedAdapters",
    "parse_model",
    "parse_path",
    "parse_weighted",
    "refuse_unused",
]

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
"""Pattern of a number in an argument."""


def parse_path(text: str) -> Path:
    """Return the path that an argument means; every argument and option with a path has this as its parser.

    Raises:
        typer.BadParameter: it can be none.
    """
    try:
        return user_path(text)
    except UserError as fault:
        raise typer.BadParameter(str(fault)) from None


def parse_model(text: str) -> str:
    """Return the model that an argument means: a folder, a file, or a hub id."""
    try:
        return open_home(text)
    except UserError as fault:
        raise typer.BadParameter(str(fault)) from None


class WeightedAdapter(NamedTuple):
    """An adapter and its strength.

    Attributes:
        file: the adapter, or the folder of its run.
        strength: 1 is what it was trained at.
    """

    file: Path
    strength: float = 1.0


def parse_weighted(text: str) -> WeightedAdapter:
    """Return the adapter and the strength that an argument means: ``style:0.8``; the strength is 1 where none is."""
    found = re.fullmatch(rf"(.+):({NUMBER})", text, re.DOTALL)
    return WeightedAdapter(parse_path(found[1]), float(found[2])) if found else WeightedAdapter(parse_path(text))


PictureSource = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER|ZIP|CONFIG.yaml",
        parser=parse_path,
        help="A folder or a zip of pictures, or a run's configuration.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Change keys of the configuration, e.g. train.max_steps=200."),
]
RunBase = Annotated[
    str | None,
    typer.Option(
        metavar="BASE",
        parser=parse_model,
        help="The base model: bundled, a diffusers folder, a .safetensors file or a hub id; the same as base=BASE.",
    ),
]
Preset = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Start from a preset, e.g. rank-small or style; may be repeated."),
]
Trigger = Annotated[str | None, typer.Option(metavar="TOKEN", help="Words that will call the adapter in a prompt.")]
AdapterFile = Annotated[
    Path, typer.Argument(metavar="ADAPTER", parser=parse_path, help="Adapter file, or the folder of its run.")
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="BASE",
        parser=parse_model,
        help="'bundled', a diffusers folder, a single file or a hub id. Default: what config.yaml beside the adapter "
        "says, else 'bundled'.",
    ),
]
WeightedAdapters = Annotated[
    list[WeightedAdapter],
    typer.Argument(
        metavar="ADAPTER[:STRENGTH]...",
        parser=parse_weighted,
        help="Adapter files or runs' folders, such as style:0.8.",
    ),
]
NewFile = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", parser=parse_path, help="The new file; must not exist.")
]
Scale = Annotated[float, typer.Option(metavar="X", help="Strength of the adapter; 1 is what it was trained at.")]
ToFormat = Annotated[
    str | None,
    typer.Option(
        "--to", metavar="FORMAT", help="kohya, diffusers, comfy or peft. Default: the format of the adapter's own file."
    ),
]
LayersBase = Annotated[
    str | None,
    typer.Option(
        metavar="BASE",
        parser=parse_model,
        help="The adapter's base, where its file does not tell which layers it is of; or a published architecture, "
        "such as sdxl or flux-dev. Default: what config.yaml beside the adapter says, else the architecture it fits.",
    ),
]


def refuse_unused(options: Mapping[str, object], needed: str, remedy: str | None = None) -> None:
    """Refuse options that have an effect only beside another, which is not given.

    Args:
        options: by name; None or empty where one is not given.
        needed: the option that is missing.
        remedy: what to do, if there is something else to do.
    """
    for name, value in options.items():
        if value not in (None, (), []):
            raise UserError(f"means something only with {needed}", code="cli.unused_option", where=name, remedy=remedy)
