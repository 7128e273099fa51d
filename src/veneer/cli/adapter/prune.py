"""The options of ``veneer adapter prune``."""

from __future__ import annotations

from typing import Annotated

import typer

from veneer.cli.options import AdapterFile, LayersBase, NewFile, ToFormat
from veneer.cli.terminal.console import print_error, print_text

__all__ = ["prune"]


def prune(
    file: AdapterFile,
    out: NewFile,
    text_encoder: Annotated[bool, typer.Option("--text-encoder", help="Drop the layers of all text encoders.")] = False,
    blocks: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Drop layers, such as down_blocks.1 or 'attn1.*'; may be repeated."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Drop all layers but these; may be repeated.")
    ] = None,
    base: LayersBase = None,
    to: ToFormat = None,
) -> None:
    """Drop layers of an adapter, and say what is left of its norm."""
    from veneer.cli.terminal.algebra import prune_text
    from veneer.verbs.prune import PruneOptions, prune_adapter

    options = PruneOptions(text_encoder, tuple(blocks or ()), tuple(keep or ()))
    result = prune_adapter(file, out, options, base=base, to=to)
    print_error(prune_text(result))
    print_text(str(result.path))
