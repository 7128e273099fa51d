"""The verbs and their options; each verb is one call of a function that the public API offers as well."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer import __version__

__all__ = ["app"]

app = typer.Typer(
    name="veneer",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: the same on every terminal, and stored for a fast --help
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Run 'veneer COMMAND --help' for a command's options.",
)
adapter = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(adapter, name="adapter", help="Look into an adapter file, verify it, or merge it into its base.")

_AdapterFile = Annotated[Path, typer.Argument(metavar="ADAPTER", help="Adapter file, or the folder of its run.")]
_Base = Annotated[
    str | None,
    typer.Option(
        metavar="BASE",
        help="'bundled', a diffusers folder or a hub id. Default: what config.yaml beside the adapter says, "
        "else 'bundled'.",
    ),
]
_Scale = Annotated[float, typer.Option(metavar="X", help="Strength of the adapter; 1 is what it was trained at.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"veneer {__version__}")
        raise typer.Exit


@app.callback()
def veneer(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Teach a diffusion model a style or a subject from a folder of pictures, and prove what it did."""


@app.command()
def train(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|CONFIG.yaml", help="A folder of pictures, or a run's configuration.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Change keys of the configuration, e.g. train.steps=200."),
    ] = None,
    trigger: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="Words that will call the adapter in a prompt.")
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Start from a preset, e.g. rank-small or style; may be repeated."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a result, or an unfinished run, in the output folder.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[CHECKPOINT]",
            help="Go on with the run in the output folder from its newest checkpoint, or start it if it has none yet; "
            "or go on from the checkpoint named.",
        ),
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="With --resume: this key may differ from what it was; may be repeated."),
    ] = None,
) -> None:
    """Train an adapter on pictures, and measure it."""
    from veneer.cli.source import config_of

    config = config_of(source, overrides or (), trigger, preset or ())
    from veneer.cli.train import resume_of, train_command

    train_command(config, overwrite=overwrite, resume=resume_of(resume, allow_change or ()))


@app.command()
def sample(
    file: _AdapterFile,
    prompt: Annotated[list[str], typer.Option(metavar="TEXT", help="What to paint; may be repeated.")],
    base: _Base = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of a prompt's first picture; the others count on.")
    ] = 0,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures of each prompt.")] = 1,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the pictures go.")] = Path("samples"),
    scale: _Scale = 1.0,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Denoising steps.")] = 25,
    guidance: Annotated[
        float, typer.Option(min=1.0, metavar="X", help="How closely to follow the prompt; 1: as it comes.")
    ] = 4.0,
) -> None:
    """Paint prompts with an adapter."""
    from veneer.run.using import Painting, sample_adapter

    how = Painting(seed=seed, count=count, scale=scale, steps=steps, guidance=guidance)
    for path in sample_adapter(file, prompt, out, base=base, how=how):
        print(path)


@adapter.command("info")
def info(file: _AdapterFile) -> None:
    """Print an adapter's format, ranks, strength and metadata."""
    from veneer.cli.show import info_text
    from veneer.weights.file import info

    print(info_text(file, info(file)))


@adapter.command("verify")
def verify(file: _AdapterFile, base: _Base = None) -> None:
    """Check an adapter against what it tells of its making."""
    from veneer.cli.show import checks_text
    from veneer.run.verify import verify_adapter

    checks = verify_adapter(file, base=base)
    print(checks_text(checks))
    if any(check.differs for check in checks):
        raise typer.Exit(1)


@adapter.command("merge")
def merge(
    file: _AdapterFile,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the merged model goes; must not exist.")],
    base: _Base = None,
    scale: _Scale = 1.0,
) -> None:
    """Write the base with the adapter merged into it."""
    from veneer.run.using import merge_adapter

    print(merge_adapter(file, out, base=base, scale=scale))
