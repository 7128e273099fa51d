"""The options of ``veneer adapter resize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veneer.cli.options import AdapterFile, Base, ToFormat, parse_path, refuse_unused
from veneer.errors import UserError

if TYPE_CHECKING:
    from veneer.adapter.resize import Criterion

__all__ = ["resize"]


def resize(
    file: AdapterFile,
    rank: Annotated[
        list[int] | None, typer.Option(min=1, metavar="N", help="To cut to; with --study it may be repeated.")
    ] = None,
    energy: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="X",
            help="Cut each layer as far as this share of its squared singular values is kept, such as 0.95; with "
            "--study it may be repeated.",
        ),
    ] = None,
    frobenius: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="X",
            help="Cut each layer as far as its delta W changes by this share of its norm at most, such as 0.01.",
        ),
    ] = None,
    dynamic: Annotated[
        str | None,
        typer.Option(metavar="NAME=X", help="The same by kohya's names: sv_fro=X, sv_cumulative=X or sv_ratio=X."),
    ] = None,
    max_rank: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="With --energy, --frobenius or --dynamic: no layer gets a higher rank."),
    ] = None,
    study: Annotated[
        bool, typer.Option("--study", help="Measure each rank on held-out pictures instead, and advise one.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=parse_path,
            help="With --study: pictures that the adapter never saw. Default: those that its run held out.",
        ),
    ] = None,
    base: Base = None,
    margin: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="X",
            help="With --study: share of the adapter's gain that may be lost. Default: 0.02.",
        ),
    ] = None,
    to: ToFormat = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            parser=parse_path,
            help="The new file; with --study a folder for the table and the plot, else not written.",
        ),
    ] = None,
) -> None:
    """Cut an adapter to lower ranks, by SVD."""
    from veneer.cli.terminal.study import measure_cuts_in_terminal, resize_in_terminal
    from veneer.study.ranks import RankStudyOptions

    if study:
        refuse_together("--study", {"--frobenius": frobenius, "--dynamic": dynamic, "--max-rank": max_rank, "--to": to})
        default = RankStudyOptions().margin
        options = RankStudyOptions(base=base, data=data, margin=default if margin is None else margin)
        measure_cuts_in_terminal(file, rank or (), energy or (), out, options)
        return
    refuse_unused({"--data": data, "--margin": margin}, "--study")
    criterion = _criterion(energy or [], frobenius, dynamic)
    if criterion is None:
        refuse_unused({"--max-rank": max_rank}, "--energy, --frobenius or --dynamic", "name the --rank itself")
    resize_in_terminal(file, _one_rank(rank or [], max_rank, criterion), criterion, out, base, to)


def refuse_together(option: str, others: dict[str, object]) -> None:
    """Refuse options that mean nothing beside another."""
    for name, value in others.items():
        if value is not None:
            raise UserError(f"means nothing with {option}", code="cli.unused_option", where=name)


def _criterion(energy: list[float], frobenius: float | None, dynamic: str | None) -> Criterion | None:
    """Return what each layer has to keep, as one of three options tells it."""
    from veneer.adapter.resize import Criterion

    told = [("energy", share) for share in energy] + ([] if frobenius is None else [("frobenius", frobenius)])
    if dynamic is not None:
        name, _, number = dynamic.partition("=")
        told.append((name.strip(), _number(number)))
    if len(told) > 1:
        remedy = "or --study with several shares of --energy, to see which is enough"
        raise UserError("one of --energy, --frobenius and --dynamic is enough", code="cli.one_criterion", remedy=remedy)
    return Criterion(*told[0]) if told else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        remedy = "use a name and a number, such as sv_fro=0.95"
        what = f"{text!r} is no number"
        raise UserError(what, code="adapter.bad_criterion", where="--dynamic", remedy=remedy) from None


def _one_rank(ranks: list[int], max_rank: int | None, criterion: Criterion | None) -> int | None:
    """Return the rank that layers have at most."""
    if criterion is not None:
        if ranks:
            what, remedy = "means something without --energy and its like", "use --max-rank beside these"
            raise UserError(what, code="cli.unused_option", where="--rank", remedy=remedy)
        return max_rank
    if len(ranks) != 1:
        remedy = "or --study, to see which is enough"
        raise UserError("one rank is needed", code="cli.one_rank_needed", where="--rank", remedy=remedy)
    return ranks[0]
