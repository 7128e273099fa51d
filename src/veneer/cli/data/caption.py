"""The options of ``veneer data caption``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.options import parse_model, parse_path
from veneer.cli.terminal.console import print_error, print_text
from veneer.errors import UserError

__all__ = ["caption"]


def caption(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", parser=parse_path, help="The pictures.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            parser=parse_model,
            help="Folder or hub id of an image-to-text model of transformers, such as BLIP or LLaVA.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the model is asked, or what its captions begin with, as it has it."),
    ] = None,
    prefix: Annotated[str, typer.Option(metavar="TEXT", help="Words before each caption.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write captions anew where there are some.")] = False,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of a caption, at most.")] = 120,
    review: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", parser=parse_path, help="Write a page of all pictures beside their captions."
        ),
    ] = None,
) -> None:
    """Write a caption beside each picture that has none, with a model of yours, and a page to look them over.

    It can be stopped at any time, and goes on where it was. The exit code is 1 if a picture could not be captioned.
    """
    from veneer.cli.terminal.picture_bar import picture_bar
    from veneer.verbs.caption_page import write_caption_page
    from veneer.verbs.captioner import load_captioner
    from veneer.verbs.data_caption import caption_folder, list_captions

    if model is None and review is None:
        what = "there is nothing to do without a model that captions, or a page to write"
        raise UserError(what, code="caption.nothing_to_do", remedy="name a model with --model, or a page with --review")
    done = list_captions(folder)
    if model is not None:
        captioner = load_captioner(model, prompt, max_tokens)
        with picture_bar("captioning") as advance:
            done = caption_folder(folder, captioner, prefix, overwrite, advance)
        print_text(f"{done.written} captions written, {done.kept} pictures had some, {len(done.failed)} have none")
    for path, reason in done.failed.items():
        print_error(f"{path}: {reason}")
    if review is not None:
        write_caption_page(review, folder, done)
        print_text(str(review))
    if done.failed:
        raise typer.Exit(1)
