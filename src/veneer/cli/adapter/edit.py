"""The options of ``veneer adapter edit``."""

from __future__ import annotations

from typing import Annotated

import typer

from veneer.cli.options import AdapterFile, NewFile
from veneer.cli.terminal.console import print_error, print_text
from veneer.errors import UserError

__all__ = ["edit"]

_Text = str | None


def edit(
    file: AdapterFile,
    out: NewFile,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the metadata; may be repeated."),
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Remove a key of the metadata; may be repeated.")
    ] = None,
    title: Annotated[_Text, typer.Option(metavar="TEXT", help="Set what the adapter is called.")] = None,
    author: Annotated[_Text, typer.Option(metavar="TEXT", help="Set who made it.")] = None,
    description: Annotated[_Text, typer.Option(metavar="TEXT", help="Set what it is for.")] = None,
    trigger: Annotated[_Text, typer.Option(metavar="WORDS", help="Set the words that call it.")] = None,
    tags: Annotated[_Text, typer.Option(metavar="TAGS", help="Set its tags, with commas between them.")] = None,
    license_: Annotated[_Text, typer.Option("--license", metavar="TEXT", help="Set its licence.")] = None,
) -> None:
    """Change an adapter's metadata, and no byte of its tensors."""
    from veneer.cli.terminal.algebra import edit_text
    from veneer.verbs.edit import NAMED, EditOptions, edit_adapter

    named = {"title": title, "author": author, "description": description, "trigger": trigger}
    named |= {"tags": tags, "license": license_}
    texts = {key: text for name, text in named.items() if text is not None for key in NAMED[name]}
    options = EditOptions({**dict(map(_pair, set_ or ())), **texts}, tuple(remove or ()))
    result = edit_adapter(file, out, options)
    print_error(edit_text(result))
    print_text(str(result.path))


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        what = f"{text!r} is no key and value"
        raise UserError(what, code="edit.no_pair", where="--set", remedy="use key=value")
    return key, value
