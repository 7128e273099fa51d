"""The options of ``veneer adapter merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from veneer.cli.options import Base, WeightedAdapters, parse_path
from veneer.cli.terminal.console import print_error, print_text

__all__ = ["merge"]


def merge(
    adapters: WeightedAdapters,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            parser=parse_path,
            help="Where the merged base goes, a folder or a .safetensors file as the base is one; must not exist.",
        ),
    ],
    base: Base = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "float8_e4m3fn"] | None,
        typer.Option(
            metavar="DTYPE",
            help="Of the denoiser's and the text encoders' weights: float32, bfloat16, float16, float8_e4m3fn. "
            "Default: the base's own.",
        ),
    ] = None,
) -> None:
    """Write the base with adapters merged into it, and say what rounding takes of them."""
    from veneer.cli.terminal.byte_bar import byte_bar
    from veneer.cli.terminal.merging import merge_text
    from veneer.verbs.merge import merge_adapters

    with byte_bar("merging") as progress:
        result = merge_adapters(adapters, out, base=base, dtype=dtype, progress=progress)
    print_error(merge_text(result))
    print_text(str(result.path))
