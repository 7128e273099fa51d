"""The options of ``veneer adapter merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.options import AdapterFile, Base, Scale, parse_path
from veneer.cli.terminal.console import print_text

__all__ = ["merge"]


def merge(
    file: AdapterFile,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", parser=parse_path, help="Where the merged model goes; must not exist.")
    ],
    base: Base = None,
    scale: Scale = 1.0,
) -> None:
    """Write the base with the adapter merged into it."""
    from veneer.verbs.merge import merge_adapter

    print_text(str(merge_adapter(file, out, base=base, scale=scale)))
