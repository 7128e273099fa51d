"""The options of ``veneer adapter check``."""

from __future__ import annotations

from typing import Annotated

import typer

from veneer.cli.options import AdapterFile, Base
from veneer.cli.terminal.console import print_text

__all__ = ["check"]


def check(
    file: AdapterFile,
    base: Base = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as data, layer by layer.")] = False,
) -> None:
    """Check an adapter against its base: layers, strength, size of delta W, what a merge would lose.

    The exit code is 0 if it is fine, 1 if there are problems, and 2 if it cannot be read or is of another base.
    """
    from veneer.cli.terminal.tables import check_text
    from veneer.serialise import to_json
    from veneer.verbs.check import check_adapter, check_data

    found = check_adapter(file, base=base)
    print_text(to_json(check_data(found)) if as_json else check_text(file, found) + "\n", end="")
    if found.problems:
        raise typer.Exit(1)
