"""The options of ``veneer sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.options import AdapterFile, Base, Scale, parse_path
from veneer.rng import MAX_SEED

__all__ = ["sample"]


def sample(
    file: AdapterFile,
    prompt: Annotated[list[str], typer.Option(metavar="TEXT", help="What to paint; may be repeated.")],
    base: Base = None,
    seed: Annotated[
        int,
        typer.Option(min=0, max=MAX_SEED, metavar="N", help="Seed of a prompt's first picture; the others count on."),
    ] = 0,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures of each prompt.")] = 1,
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            parser=parse_path,
            help="Picture that a base which edits applies every prompt to; repeated for a base that takes several.",
        ),
    ] = None,
    frames: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Frames, where the base was trained on clips: 81, 121; 1: pictures."),
    ] = 1,
    out: Annotated[Path, typer.Option(metavar="FOLDER", parser=parse_path, help="Where the pictures go.")] = Path(
        "samples"
    ),
    scale: Scale = 1.0,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Denoising steps.")] = 25,
    guidance: Annotated[
        float, typer.Option(min=1.0, metavar="X", help="How closely to follow the prompt; 1: as it comes.")
    ] = 4.0,
) -> None:
    """Paint prompts with an adapter."""
    from veneer.cli.terminal.console import print_text, print_warning
    from veneer.train.events import Warned
    from veneer.verbs.sample import PictureWritten, SampleOptions, sample_adapter

    def show(event: Warned | PictureWritten) -> None:
        if isinstance(event, Warned):
            print_warning(event)
        else:
            print_text(str(event.path))

    options = SampleOptions(seed, count, scale, steps, guidance, tuple(reference or ()), frames)
    sample_adapter(file, prompt, out, base=base, options=options, callback=show)
