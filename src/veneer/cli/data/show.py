"""The options of ``veneer data show``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.inputs import read_run_config, with_base
from veneer.cli.options import Overrides, PictureSource, RunBase, Trigger, parse_path
from veneer.cli.terminal.console import print_text

__all__ = ["show"]


def show(
    source: PictureSource,
    overrides: Overrides = None,
    base: RunBase = None,
    trigger: Trigger = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="How many draws are shown.")] = 8,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.png", parser=parse_path, help="The sheet that is written.")
    ] = Path("sheet.png"),
) -> None:
    """Paint what the model will see of the first draws: cut, mirrored, captioned, masked, decoded from latents."""
    config = read_run_config(source, with_base(overrides or (), base), trigger, ())
    from veneer.cli.terminal.picture_bar import picture_bar
    from veneer.verbs.data_show import show_draws

    with picture_bar("looking pictures over") as advance:
        draws = show_draws(config, out, count, advance)
    for draw in draws:
        print_text(f"{draw.size[1]} x {draw.size[0]}  {draw.sample.path}")
    print_text(str(out))
