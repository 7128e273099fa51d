"""The options of ``veneer data check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.inputs import read_run_config, with_base
from veneer.cli.options import Overrides, PictureSource, Preset, RunBase, Trigger, parse_path
from veneer.cli.terminal.console import print_text

__all__ = ["check"]


def check(
    source: PictureSource,
    overrides: Overrides = None,
    base: RunBase = None,
    trigger: Trigger = None,
    preset: Preset = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.html", parser=parse_path, help="Write a page with thumbnails, crops and captions."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as data, picture by picture.")] = False,
) -> None:
    """Look all pictures over as a training would: broken, flat, blurred, twins, crops, captions too long.

    The base decides their sizes and how much of a caption is read. The exit code is 0 if a training would start, 1 if
    it would refuse the pictures, and 2 if there are none to look at or the configuration is at fault.
    """
    config = read_run_config(source, with_base(overrides or (), base), trigger, preset or ())
    from veneer.cli.terminal.data_check import check_text
    from veneer.cli.terminal.picture_bar import picture_bar
    from veneer.serialise import to_json
    from veneer.verbs.data_check import check_data, check_pictures
    from veneer.verbs.data_check_page import write_check_page

    with picture_bar("looking pictures over") as advance:
        found = check_pictures(config, advance)
    if out is not None:
        write_check_page(out, found)
    print_text(to_json(check_data(found)) if as_json else check_text(found) + "\n", end="")
    if out is not None and not as_json:
        print_text(f"page: {out}")
    if found.refusal is not None:
        raise typer.Exit(1)
