"""The options of ``veneer adapter convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from veneer.cli.options import AdapterFile, parse_model, parse_path
from veneer.cli.terminal.console import print_text

__all__ = ["convert"]


def convert(
    file: AdapterFile,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            parser=parse_path,
            help="The new .safetensors file, or a folder in which it gets its usual name; of peft the folder itself.",
        ),
    ],
    to: Annotated[
        Literal["kohya", "diffusers", "comfy", "peft"],
        typer.Option(
            metavar="FORMAT",
            help="kohya (A1111, Forge, ComfyUI, kohya's scripts), diffusers, comfy (ComfyUI alone) or peft.",
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            parser=parse_model,
            help="The adapter's base, or a published architecture, such as sdxl or flux-dev; its weights are not "
            "read. Default: what config.yaml beside the adapter says, else the architecture that it fits.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(metavar="DTYPE", help="float32, float16 or bfloat16. Default: that of the adapter."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the new file with other programs' readers and compare.")
    ] = False,
) -> None:
    """Write an adapter in another program's format, with the same strength."""
    from veneer.cli.terminal.convert import conversion_text
    from veneer.verbs.convert import convert_adapter

    print_text(conversion_text(convert_adapter(file, out, to, base=base, dtype=dtype, verify=verify)))
