"""The options of ``veneer adapter push``."""

from __future__ import annotations

from typing import Annotated

import typer

from veneer.cli.options import AdapterFile
from veneer.cli.terminal.console import print_text

__all__ = ["push"]


def push(
    file: AdapterFile,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; it is made if there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Make a repository that nobody else sees.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch, which is made if there is none. Default: main.")
    ] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Message of the commit.")] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Add a commit to a repository that holds files already.")
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Upload although the card or the metadata names a path of a machine.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be uploaded.")] = False,
) -> None:
    """Upload an adapter, its card and its pictures to the Hugging Face hub."""
    from veneer.cli.terminal.publication import publication_text
    from veneer.verbs.push import PushOptions, push_adapter

    options = PushOptions(private, revision, message, update, anyway)
    pushed = push_adapter(
        file, repo, options=options, dry_run=dry_run, callback=lambda each: print_text(publication_text(each))
    )
    print_text("nothing was uploaded" if pushed is None else pushed.url)
