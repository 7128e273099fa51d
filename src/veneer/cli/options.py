"""Options that several verbs have, and the refusal of those that have no effect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from veneer.errors import UserError

__all__ = ["AdapterFile", "Base", "Scale", "refuse_unused"]

AdapterFile = Annotated[Path, typer.Argument(metavar="ADAPTER", help="Adapter file, or the folder of its run.")]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="BASE",
        help="'bundled', a diffusers folder or a hub id. Default: what config.yaml beside the adapter says, "
        "else 'bundled'.",
    ),
]
Scale = Annotated[float, typer.Option(metavar="X", help="Strength of the adapter; 1 is what it was trained at.")]


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
