"""The options of ``veneer data init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.options import parse_model, parse_path
from veneer.cli.terminal.console import print_text

__all__ = ["init"]


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", parser=parse_path, help="A folder or zip of pictures.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.yaml", parser=parse_path, help="The new file; must not exist.")
    ] = Path("config.yaml"),
    base: Annotated[
        str, typer.Option(metavar="BASE", parser=parse_model, help="The base model, as for 'veneer train'.")
    ] = "bundled",
    trigger: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="Words that will call the adapter. Default: one is proposed.")
    ] = None,
) -> None:
    """Write a configuration for a folder of pictures from what is found there, with comments."""
    from veneer.cli.terminal.picture_bar import picture_bar
    from veneer.verbs.data_init import write_initial_config

    with picture_bar("looking pictures over") as advance:
        write_initial_config(folder, out, base, trigger, advance)
    print_text(f"{out}\ntrain it: veneer train {out}")
