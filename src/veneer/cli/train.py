"""The options of ``veneer train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.inputs import read_run_config, with_base
from veneer.cli.options import Overrides, PictureSource, Preset, RunBase, Trigger, refuse_unused

__all__ = ["train"]


def train(
    source: PictureSource,
    overrides: Overrides = None,
    base: RunBase = None,
    trigger: Trigger = None,
    preset: Preset = None,
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
    if resume is None:
        refuse_unused({"--allow-change": allow_change}, "--resume")
    config = read_run_config(source, with_base(overrides or (), base), trigger, preset or ())
    from veneer.cli.terminal.train import run_in_terminal
    from veneer.run.resume import Resume

    # no name at --resume means the newest checkpoint
    wanted = None if resume is None else Resume(Path(resume) if resume else None, tuple(allow_change or ()))
    run_in_terminal(config, overwrite=overwrite, resume=wanted)
