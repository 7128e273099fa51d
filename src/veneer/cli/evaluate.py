"""The options of ``veneer evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer.cli.options import Base, parse_model, parse_path

__all__ = ["evaluate"]


def evaluate(
    file: Annotated[
        Path, typer.Argument(metavar="RUN|ADAPTER", parser=parse_path, help="Folder of a run, or an adapter file.")
    ],
    base: Base = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            parser=parse_path,
            help="Pictures that the adapter never saw; may be repeated. Default: those that its run held out.",
        ),
    ] = None,
    training: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            parser=parse_path,
            help="Pictures that it was trained on; may be repeated. Default: those of its run.",
        ),
    ] = None,
    prior: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=parse_path,
            help="Pictures of other things, which it should not change. Default: the run's of the class, else "
            "some that the base samples.",
        ),
    ] = None,
    trigger: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="Words that call the adapter, for captions of --data and --training. Default: the run's, else those "
            "in the file.",
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Pictures sampled: of prompts, of other things, to look for copies."),
    ] = 32,
    clip: Annotated[
        str | None,
        typer.Option(metavar="MODEL", parser=parse_model, help="Folder or hub id of a CLIP, to score the samples."),
    ] = None,
    dino: Annotated[
        str | None, typer.Option(metavar="MODEL", parser=parse_model, help="The same, a DINO or DINOv2.")
    ] = None,
    aesthetic: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=parse_path, help="Aesthetic head over that CLIP, as .safetensors."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=parse_path,
            help="Where results go. Default: the run's folder; for a file, one beside it.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print evaluation.json instead of lines.")] = False,
) -> None:
    """Measure an adapter: does it help, what does it memorise, what else does it change, does it copy."""
    from veneer.cli.terminal.evaluate import print_evaluation
    from veneer.evaluate.score_models import ScoreModelPaths
    from veneer.verbs.evaluation_inputs import EvaluationOptions

    options = EvaluationOptions(
        base=base,
        data=tuple(data or ()),
        training=tuple(training or ()),
        prior=prior,
        trigger=trigger,
        samples=samples,
        models=ScoreModelPaths(clip, dino, aesthetic),
        out=out,
    )
    print_evaluation(file, options, as_json=json)
