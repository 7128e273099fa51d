"""The options of ``veneer adapter blend``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from veneer.cli.options import NUMBER, LayersBase, NewFile, ToFormat, WeightedAdapters, refuse_unused
from veneer.cli.terminal.console import print_error, print_text
from veneer.errors import UserError

if TYPE_CHECKING:
    from veneer.verbs.blend import BlockWeights

__all__ = ["blend"]


def blend(
    adapters: WeightedAdapters,
    out: NewFile,
    base: LayersBase = None,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Cut each layer to this rank. Default: all ranks together, which is exact."
        ),
    ] = None,
    method: Annotated[
        Literal["ties", "dare", "dare_ties", "magnitude"] | None,
        typer.Option(
            metavar="METHOD",
            help="ties, dare, dare_ties or magnitude: prune what each adapter changes before it is added. "
            "Default: not at all.",
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, metavar="X", help="With --method: share of the entries kept. Default: 0.5."),
    ] = None,
    majority_sign: Annotated[
        Literal["total", "frequency"] | None,
        typer.Option(
            metavar="HOW",
            help="With --method ties: the sign of an entry prevails by total or by frequency. Default: total.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="With --method dare: of the entries kept. Default: 0.")
    ] = None,
    block_weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=X",
            help="Weigh some layers, such as down_blocks.1=0.5 or 'attn2.*=0'; or a list of LoRA Block Weight, "
            "such as 1,0,0,... ; of the second adapter alone with 2: before it. May be repeated.",
        ),
    ] = None,
    to: ToFormat = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(metavar="DTYPE", help="float32, float16 or bfloat16. Default: float32, which is exact."),
    ] = None,
) -> None:
    """Blend adapters into one file: their weighted sum, exact unless it is cut to a rank."""
    if method is None:
        refuse_unused({"--density": density, "--majority-sign": majority_sign, "--seed": seed}, "--method")
    from veneer.adapter.blend import Pruning
    from veneer.cli.terminal.algebra import blend_text
    from veneer.verbs.blend import BlendOptions, BlendSource, blend_adapters

    pruning = None
    if method is not None:
        share = 0.5 if density is None else density
        pruning = Pruning(method, share, majority_sign or "total", seed or 0)
    options = BlendOptions(rank, pruning, tuple(_block_weights(text) for text in block_weights or ()), dtype)
    sources = [BlendSource(*each) for each in adapters]
    result = blend_adapters(sources, out, options=options, base=base, to=to)
    print_error(blend_text(result))
    print_text(str(result.path))


def _block_weights(text: str) -> BlockWeights:
    """Return the block weights that an argument means: ``down_blocks.1=0.5``, ``2:1,0,0,...``."""
    from veneer.verbs.blend import BlockWeights

    found = re.fullmatch(rf"(?:(\d+):)?(?:(.+)=)?({NUMBER}(?:\s*,\s*{NUMBER})*)", text.strip(), re.DOTALL)
    values = tuple(float(value) for value in found[3].split(",")) if found else ()
    if found is None or (found[2] is None) == (len(values) == 1):
        what, remedy = f"{text!r} are no block weights", "use PATTERN=NUMBER, or a list of numbers"
        raise UserError(what, code="adapter.bad_block_weights", where="--block-weights", remedy=remedy)
    return BlockWeights(found[2], values, int(found[1]) if found[1] else None)
