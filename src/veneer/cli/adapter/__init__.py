"""``veneer adapter``: one file for each of its verbs."""

from __future__ import annotations

import typer

from veneer.cli.adapter.blend import blend
from veneer.cli.adapter.check import check
from veneer.cli.adapter.civitai import civitai
from veneer.cli.adapter.compare import compare
from veneer.cli.adapter.convert import convert
from veneer.cli.adapter.edit import edit
from veneer.cli.adapter.extract import extract
from veneer.cli.adapter.info import info
from veneer.cli.adapter.merge import merge
from veneer.cli.adapter.prune import prune
from veneer.cli.adapter.push import push
from veneer.cli.adapter.resize import resize
from veneer.cli.adapter.verify import verify

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
_VERBS = (
    info,
    check,
    verify,
    convert,
    resize,
    blend,
    compare,
    prune,
    edit,
    merge,
    extract,
    push,
    civitai,
)
for _verb in _VERBS:
    app.command()(_verb)
