"""The options of ``veneer plan``."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from veneer.cli.inputs import read_planned_config
from veneer.cli.options import parse_model

__all__ = ["plan"]


def plan(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FOLDER|CONFIG.yaml] [KEY=VALUE]...",
            help="As for 'veneer train'; with --base the pictures may be left out.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            parser=parse_model,
            help="In place of the configuration's. Names such as sdxl and flux-dev are of architectures without "
            "weights; docs/families.md has all.",
        ),
    ] = None,
    trigger: Annotated[str | None, typer.Option(metavar="TOKEN", help="As for 'veneer train'.")] = None,
    preset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Start from a preset; may be repeated.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Do a step in a process of its own, and show measured beside planned.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Free memory of the machine to plan for, e.g. 8GB. Default: this one's."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as data.")] = False,
) -> None:
    """Say what a run will train and take: parameters, memory, disk, steps."""
    config, count_pictures = read_planned_config(words or (), base, trigger, preset or ())
    with _collector_paused():
        from veneer.cli.terminal.plan import print_plan
    gc.freeze()  # what was imported stays, so that no collection of a rehearsal walks over it
    try:
        print_plan(config, count_pictures=count_pictures, probed=probe, memory=memory, as_json=as_json)
    finally:
        gc.unfreeze()


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Within, no cycles are collected: imports make objects by the million and hardly any garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
