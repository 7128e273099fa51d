"""The verbs put together; each is one call of a function that the public API offers as well."""

from __future__ import annotations

from typing import Annotated

import typer

from veneer import __version__
from veneer.cli import adapter, data
from veneer.cli.doctor import doctor
from veneer.cli.evaluate import evaluate
from veneer.cli.plan import plan
from veneer.cli.report import report
from veneer.cli.sample import sample
from veneer.cli.study import study
from veneer.cli.terminal.console import print_text
from veneer.cli.train import train

__all__ = ["app"]

app = typer.Typer(
    name="veneer",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: the same on every terminal, and stored for a fast --help
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Run 'veneer COMMAND --help' for a command's options.",
)
for _verb in (train, plan, sample, evaluate, study, doctor, report):
    app.command()(_verb)
app.add_typer(data.app, name="data", help="Look pictures over before a training, and prepare them for it.")
app.add_typer(
    adapter.app, name="adapter", help="Look into adapter files; convert, resize, blend, compare, prune, merge, publish."
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_text(f"veneer {__version__}")
        raise typer.Exit


@app.callback()
def veneer(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Teach a diffusion model a style or a subject from a folder of pictures, and prove what it did."""
