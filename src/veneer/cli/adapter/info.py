"""The options of ``veneer adapter info``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.options import AdapterFile, parse_path
from veneer.cli.terminal.console import bar_mark, print_text

__all__ = ["info"]


def info(
    file: AdapterFile,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="PNG", parser=parse_path, help="Also draw the norms of delta W by block here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as data, layer by layer.")] = False,
) -> None:
    """Print what an adapter is: format, family, ranks, strength, norms, hashes, trigger words, metadata."""
    # numpy's BLAS would wait for threads of its own by spinning, for minutes on a busy machine
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from veneer.cli.terminal.tables import info_text
    from veneer.serialise import to_json
    from veneer.verbs.info import info_data, write_norm_plot
    from veneer.weights.summary import info

    found = info(file)
    print_text(to_json(info_data(found)) if as_json else info_text(file, found, bar_mark()) + "\n", end="")
    if plot is not None:
        write_norm_plot(found, plot, file.name)
