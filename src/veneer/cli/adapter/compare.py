"""The options of ``veneer adapter compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.options import parse_model, parse_path
from veneer.cli.terminal.console import print_text

__all__ = ["compare"]


def compare(
    first: Annotated[
        Path,
        typer.Argument(
            metavar="ADAPTER", parser=parse_path, help="Adapter file, the folder of its run, or one of its checkpoints."
        ),
    ],
    second: Annotated[Path, typer.Argument(metavar="OTHER", parser=parse_path, help="The adapter to compare it with.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            parser=parse_model,
            help="Measure as well what each adapter amplifies of the base: 'bundled', a folder, a file or a hub id.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", parser=parse_path, help="Also draw the comparison here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as data, layer by layer.")] = False,
) -> None:
    """Compare two adapters: shared directions, cosine, drift, and with the base amplification."""
    from veneer.cli.terminal.algebra import comparison_text
    from veneer.serialise import to_json
    from veneer.verbs.compare import compare_adapters, comparison_data
    from veneer.verbs.compare_plot import write_comparison_plot

    found = compare_adapters(first, second, base=base)
    if plot is not None:
        write_comparison_plot(found, plot)
    print_text(to_json(comparison_data(found)) if as_json else comparison_text(found) + "\n", end="")
