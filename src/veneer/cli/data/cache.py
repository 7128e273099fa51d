"""The options of ``veneer data cache``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.inputs import read_run_config, with_base
from veneer.cli.options import Overrides, PictureSource, RunBase, Trigger, parse_path, refuse_unused

__all__ = ["cache"]


def cache(
    source: PictureSource,
    overrides: Overrides = None,
    base: RunBase = None,
    trigger: Trigger = None,
    listed: Annotated[bool, typer.Option("--list", help="Encode nothing: say what the cache holds.")] = False,
    unused: Annotated[
        bool, typer.Option("--prune", help="Encode nothing: remove what the configuration does not need.")
    ] = False,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="CONFIG", parser=parse_path, help="With --prune: keep what this one needs too; may be repeated."
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Encode nothing: remove what was stored first, until 10GB or so are left."),
    ] = None,
    older: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="Encode nothing: remove what was stored before that.")
    ] = None,
) -> None:
    """Encode now all that a training will need into data.cache, or look after what is there.

    A stop at any time loses nothing of it, and several may do it at once.
    """
    if not unused:
        refuse_unused({"--also": also}, "--prune")
    config = read_run_config(source, with_base(overrides or (), base), trigger, ())
    from veneer.cli.terminal.data_cache import fill_in_terminal, list_in_terminal, prune_in_terminal

    if listed:
        list_in_terminal(config)
    elif unused or max_size is not None or older is not None:
        others = [read_run_config(path, (), None, ()) for path in also or ()]
        prune_in_terminal([config, *others], unused=unused, older=older, max_size=max_size)
    else:
        fill_in_terminal(config)
