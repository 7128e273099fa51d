"""The options of ``veneer doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.options import parse_path

__all__ = ["doctor"]


def doctor(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", parser=parse_path, help="The folder that 'veneer train' wrote to.")
    ],
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Load the base, and measure what the run did not, such as shuffled captions."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as data.")] = False,
) -> None:
    """Find problems of a run: the evidence, and what to change.

    The exit code is 0 for a healthy run and 1 for one with problems.
    """
    from veneer.cli.terminal.doctor import print_diagnosis

    if print_diagnosis(run, measured=measure, as_json=as_json):
        raise typer.Exit(1)
