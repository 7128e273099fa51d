"""The options of ``veneer adapter civitai``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.options import AdapterFile, Base, parse_path
from veneer.cli.terminal.console import print_text

__all__ = ["civitai"]


def civitai(
    file: AdapterFile,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", parser=parse_path, help="The new folder; must not exist.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the adapter. Default: that of its folder or file.")
    ] = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PNG", parser=parse_path, help="A preview; may be repeated. Default: the run's own gallery."
        ),
    ] = None,
    base: Base = None,
) -> None:
    """Make a folder for Civitai, A1111 and Forge: the file, previews with their settings, the form's fields."""
    from veneer.verbs.civitai import make_civitai_folder

    made = make_civitai_folder(file, out, name=name, base=base, pictures=picture or ())
    print_text("\n".join([*(str(made.path / each) for each in made.files), *(f"note: {note}" for note in made.notes)]))
