"""The options of ``veneer report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.options import parse_path

__all__ = ["report"]


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", parser=parse_path, help="The folder that 'veneer train' or 'veneer evaluate' wrote to."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead, and write nothing.")] = False,
) -> None:
    """Tell a run as one page, report.html: verdict, curves, pictures, plan, provenance."""
    from veneer.cli.terminal.report import print_report

    print_report(run, as_json=as_json)
