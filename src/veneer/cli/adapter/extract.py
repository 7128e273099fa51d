"""The options of ``veneer adapter extract``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from veneer.cli.options import NewFile, parse_model, refuse_unused
from veneer.cli.terminal.console import print_error, print_text

__all__ = ["extract"]


def extract(
    tuned: Annotated[
        str,
        typer.Argument(metavar="TUNED", parser=parse_model, help="The fine-tuned base: a folder, a file or a hub id."),
    ],
    base: Annotated[
        str, typer.Option(metavar="PARENT", parser=parse_model, help="What it was tuned from: as TUNED, or 'bundled'.")
    ],
    out: NewFile,
    rank: Annotated[int | None, typer.Option(min=1, metavar="N", help="The rank of each layer.")] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="X",
            help="Instead of a rank: give each layer the lowest that keeps this share of the squared singular values "
            "of its change, such as 0.95.",
        ),
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --energy: no layer gets a higher rank.")
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Extract these layers alone, such as attn1 or 'attn2.to_*'. May be repeated. Default: all linear "
            "layers and convolutions.",
        ),
    ] = None,
    text_encoders: Annotated[
        bool, typer.Option("--text-encoders", help="Extract layers of the text encoders too.")
    ] = False,
    keep_rest: Annotated[
        bool,
        typer.Option(
            "--keep-rest", help="Keep changes of biases and norms as they are, which formats kohya and comfy can."
        ),
    ] = False,
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="Format of the new file. Default: diffusers.")
    ] = "diffusers",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        typer.Option(metavar="DTYPE", help="Of its tensors: float32 (default), float16, bfloat16."),
    ] = "float32",
) -> None:
    """Extract the LoRA that is nearest to what a fine-tuned base has changed of its parent, and say what is lost."""
    if energy is None:
        refuse_unused({"--max-rank": max_rank}, "--energy")
    else:
        refuse_unused({"--rank": rank}, "a fixed size", "use --max-rank beside --energy")
    import torch

    from veneer.adapter.resize import Criterion
    from veneer.cli.terminal.byte_bar import byte_bar
    from veneer.cli.terminal.merging import extract_text
    from veneer.verbs.extract import ExtractOptions, extract_adapter

    options = ExtractOptions(
        rank=max_rank if rank is None else rank,
        criterion=None if energy is None else Criterion("energy", energy),
        targets=tuple(targets or ()),
        text_encoders=text_encoders,
        keep_rest=keep_rest,
        to=to,
        dtype=getattr(torch, dtype),
    )
    with byte_bar("extracting") as progress:
        result = extract_adapter(tuned, base, out, options, progress=progress)
    print_error(extract_text(result))
    print_text(str(result.path))
