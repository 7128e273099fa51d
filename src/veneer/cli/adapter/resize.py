"""The options of ``veneer adapter resize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.options import AdapterFile, Base, parse_path, refuse_unused

__all__ = ["resize"]


def resize(
    file: AdapterFile,
    rank: Annotated[
        list[int] | None, typer.Option(min=1, metavar="N", help="To cut to; with --study it may be repeated.")
    ] = None,
    study: Annotated[
        bool, typer.Option("--study", help="Measure each rank on held-out pictures instead, and advise one.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=parse_path,
            help="With --study: pictures that the adapter never saw. Default: those that its run held out.",
        ),
    ] = None,
    base: Base = None,
    margin: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="X",
            help="With --study: share of the adapter's gain that may be lost. Default: 0.02.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            parser=parse_path,
            help="The new file; with --study a folder for the table and the plot, else not written.",
        ),
    ] = None,
) -> None:
    """Cut an adapter to a lower rank, by SVD."""
    if not study:
        refuse_unused({"--data": data, "--margin": margin}, "--study")
    from veneer.cli.terminal.study import resize_in_terminal
    from veneer.study.ranks import RankStudyOptions

    default = RankStudyOptions().margin
    options = RankStudyOptions(base=base, data=data, margin=default if margin is None else margin)
    resize_in_terminal(file, rank or (), out, options, measured=study)
