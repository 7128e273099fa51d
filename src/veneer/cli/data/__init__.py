"""``veneer data``: one file for each of its verbs."""

from __future__ import annotations

import typer

from veneer.cli.data.cache import cache
from veneer.cli.data.caption import caption
from veneer.cli.data.check import check
from veneer.cli.data.init import init
from veneer.cli.data.show import show

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
_VERBS = (cache, caption, check, init, show)
for _verb in _VERBS:
    app.command()(_verb)
