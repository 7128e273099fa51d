"""The options of ``veneer data check``."""

from __future__ import annotations

from typing import Annotated

import typer

from veneer.cli.inputs import read_run_config
from veneer.cli.options import Overrides, PictureSource, Trigger
from veneer.cli.terminal.console import print_text

__all__ = ["check"]


def check(
    source: PictureSource,
    overrides: Overrides = None,
    trigger: Trigger = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as data.")] = False,
) -> None:
    """Look all pictures over as a training would: broken ones, twins, lookalikes, small ones, captions.

    The exit code is 0 if a training would start, and 2 if something is at fault that it would refuse.
    """
    config = read_run_config(source, overrides or (), trigger, ())
    from veneer.cli.terminal.data_check import check_text
    from veneer.serialise import to_json
    from veneer.verbs.data_check import check_pictures

    found = check_pictures(config)
    print_text(to_json(found) if as_json else check_text(found) + "\n", end="")
