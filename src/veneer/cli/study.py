"""The options of ``veneer study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.inputs import read_study
from veneer.cli.options import parse_path

__all__ = ["study"]


def study(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY.yaml|NAME", parser=parse_path, help="A study, or a ready-made one: rank or targets."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Change keys of the study, e.g. seeds=[0] or run.train.max_steps=200."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER|CONFIG.yaml", parser=parse_path, help="The run to study, in place of the study's own."
        ),
    ] = None,
    trigger: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="With --config: words that will call the adapter in a prompt.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=parse_path,
            help="Where the study goes. Default: the run's output, with the study's name.",
        ),
    ] = None,
    on: Annotated[
        str, typer.Option(metavar="PLACE", help="'local', one training after another, or 'ray', a cluster's.")
    ] = "local",
) -> None:
    """Train many ways, and compare them on held-out pictures.

    What is done already is not done again, so the same command goes on with a study that was stopped.
    """
    checked = read_study(source, overrides or (), config, trigger)
    from veneer.cli.terminal.study import run_study_in_terminal

    if not run_study_in_terminal(checked, out, on):
        raise typer.Exit(1)
