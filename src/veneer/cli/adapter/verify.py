"""The options of ``veneer adapter verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from veneer.cli.options import AdapterFile, parse_model
from veneer.cli.terminal.console import print_text

__all__ = ["verify"]


def verify(
    file: AdapterFile,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            parser=parse_model,
            help="'bundled', a diffusers folder or a hub id. Default: what config.yaml beside the adapter says, "
            "or 'bundled' if the adapter does.",
        ),
    ] = None,
) -> None:
    """Check an adapter against what it was made from, by the hashes in its file."""
    from veneer.cli.terminal.tables import checks_text
    from veneer.verbs.verify import verify_adapter

    checks = verify_adapter(file, base=base)
    print_text(checks_text(checks))
    if any(check.differs for check in checks):
        raise typer.Exit(1)
