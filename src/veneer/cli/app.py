"""The verbs and their options; each verb is one call of a function that the public API offers as well."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veneer import __version__
from veneer.rng import MAX_SEED

__all__ = ["app"]

app = typer.Typer(
    name="veneer",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: the same on every terminal, and stored for a fast --help
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Run 'veneer COMMAND --help' for a command's options.",
)
adapter = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(
    adapter, name="adapter", help="Look into an adapter file, verify it, cut its rank, or merge it into its base."
)

_AdapterFile = Annotated[Path, typer.Argument(metavar="ADAPTER", help="Adapter file, or the folder of its run.")]
_Base = Annotated[
    str | None,
    typer.Option(
        metavar="BASE",
        help="'bundled', a diffusers folder or a hub id. Default: what config.yaml beside the adapter says, "
        "else 'bundled'.",
    ),
]
_Scale = Annotated[float, typer.Option(metavar="X", help="Strength of the adapter; 1 is what it was trained at.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"veneer {__version__}")
        raise typer.Exit


@app.callback()
def veneer(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Teach a diffusion model a style or a subject from a folder of pictures, and prove what it did."""


@app.command()
def train(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|CONFIG.yaml", help="A folder of pictures, or a run's configuration.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Change keys of the configuration, e.g. train.max_steps=200."),
    ] = None,
    trigger: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="Words that will call the adapter in a prompt.")
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Start from a preset, e.g. rank-small or style; may be repeated."),
    ] = None,
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
    from veneer.cli.source import config_of

    config = config_of(source, overrides or (), trigger, preset or ())
    from veneer.cli.train import resume_of, train_command

    train_command(config, overwrite=overwrite, resume=resume_of(resume, allow_change or ()))


@app.command()
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
            help="In place of the configuration's. sd15, sd21, sdxl and flux-dev name architectures without weights.",
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
    from veneer.cli.source import planned

    config, known = planned(words or (), base, trigger, preset or ())
    from veneer.cli.plan import plan_command

    plan_command(config, count_pictures=known, probed=probe, memory=memory, as_json=as_json)


@app.command()
def sample(
    file: _AdapterFile,
    prompt: Annotated[list[str], typer.Option(metavar="TEXT", help="What to paint; may be repeated.")],
    base: _Base = None,
    seed: Annotated[
        int,
        typer.Option(min=0, max=MAX_SEED, metavar="N", help="Seed of a prompt's first picture; the others count on."),
    ] = 0,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures of each prompt.")] = 1,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the pictures go.")] = Path("samples"),
    scale: _Scale = 1.0,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Denoising steps.")] = 25,
    guidance: Annotated[
        float, typer.Option(min=1.0, metavar="X", help="How closely to follow the prompt; 1: as it comes.")
    ] = 4.0,
) -> None:
    """Paint prompts with an adapter."""
    from veneer.verbs.sample import SampleOptions, sample_adapter

    options = SampleOptions(seed=seed, count=count, scale=scale, steps=steps, guidance=guidance)
    for path in sample_adapter(file, prompt, out, base=base, options=options):
        print(path)


@app.command()
def evaluate(
    file: Annotated[Path, typer.Argument(metavar="RUN|ADAPTER", help="Folder of a run, or an adapter file.")],
    base: _Base = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Pictures that the adapter never saw; may be repeated. Default: those that its run held out.",
        ),
    ] = None,
    training: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Pictures that it was trained on; may be repeated. Default: those of its run."
        ),
    ] = None,
    prior: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Pictures of other things, which it should leave alone. Default: the run's of the class, else "
            "some that the base paints.",
        ),
    ] = None,
    trigger: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="Words that call the adapter, for captions of --data and --training. Default: the run's, else those "
            "that the file tells.",
        ),
    ] = None,
    paint: Annotated[
        int, typer.Option(min=0, metavar="N", help="Pictures painted of other things, and to look for copies.")
    ] = 16,
    clip: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Folder or hub id of a CLIP, to judge what is painted.")
    ] = None,
    dino: Annotated[str | None, typer.Option(metavar="MODEL", help="The same, a DINO or DINOv2.")] = None,
    aesthetic: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Aesthetic head over that CLIP, as .safetensors.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where results go. Default: the run's folder; for a file, one beside it."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print evaluation.json instead of lines.")] = False,
) -> None:
    """Measure an adapter: does it help, what does it memorise, what else does it change, does it copy."""
    from veneer.cli.evaluate import evaluate_command
    from veneer.evaluate.model_scores import Models
    from veneer.verbs.evaluate import Evaluating

    how = Evaluating(
        base=base,
        data=tuple(data or ()),
        training=tuple(training or ()),
        prior=prior,
        trigger=trigger,
        paint=paint,
        models=Models(clip, dino, aesthetic),
        out=out,
    )
    evaluate_command(file, how, as_json=json)


@app.command()
def study(
    source: Annotated[
        Path, typer.Argument(metavar="STUDY.yaml|NAME", help="A study, or a ready-made one: rank or targets.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Change keys of the study, e.g. seeds=[0] or run.train.max_steps=200."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER|CONFIG.yaml", help="The run to study, in place of the study's own."),
    ] = None,
    trigger: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="With --config: words that will call the adapter in a prompt.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the study goes. Default: the run's output, with the study's name."),
    ] = None,
    on: Annotated[
        str, typer.Option(metavar="PLACE", help="'local', one training after another, or 'ray', a cluster's.")
    ] = "local",
) -> None:
    """Train many ways, and compare them on held-out pictures.

    What is done already is not done again, so the same command goes on with a study that was stopped.
    """
    from veneer.cli.source import studied

    checked = studied(source, overrides or (), config, trigger)
    from veneer.cli.study import study_command

    if not study_command(checked, out, on):
        raise typer.Exit(1)


@app.command()
def doctor(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that 'veneer train' wrote to.")],
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Load the base, and measure what the run did not, such as shuffled captions."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as data.")] = False,
) -> None:
    """Find problems of a run: the evidence, and what to change.

    The exit code is 0 for a healthy run and 1 for one with problems.
    """
    from veneer.cli.doctor import doctor_command

    if doctor_command(run, measured=measure, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder that 'veneer train' or 'veneer evaluate' wrote to.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead, and write nothing.")] = False,
) -> None:
    """Tell a run as one page, report.html: verdict, curves, pictures, plan, provenance."""
    from veneer.cli.report import report_command

    report_command(run, as_json=as_json)


@adapter.command("info")
def info(file: _AdapterFile) -> None:
    """Print an adapter's format, ranks, strength and metadata."""
    from veneer.cli.show import info_text
    from veneer.weights.file import info

    print(info_text(file, info(file)))


@adapter.command("verify")
def verify(
    file: _AdapterFile,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="'bundled', a diffusers folder or a hub id. Default: what config.yaml beside the adapter says, "
            "or 'bundled' if the adapter does.",
        ),
    ] = None,
) -> None:
    """Check an adapter against what it tells of its making."""
    from veneer.cli.show import checks_text
    from veneer.verbs.verify import verify_adapter

    checks = verify_adapter(file, base=base)
    print(checks_text(checks))
    if any(check.differs for check in checks):
        raise typer.Exit(1)


@adapter.command("resize")
def resize(
    file: _AdapterFile,
    rank: Annotated[
        list[int] | None, typer.Option(min=1, metavar="N", help="To cut to; with --study it may be repeated.")
    ] = None,
    study: Annotated[
        bool, typer.Option("--study", help="Measure each rank on held-out pictures instead, and advise one.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --study: pictures that the adapter never saw. Default: those that its run held out.",
        ),
    ] = None,
    base: _Base = None,
    margin: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="X",
            help="With --study: share of the adapter's gain that may be lost. Default: 0.02.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="The new file; with --study a folder for the table and the plot, else not written."
        ),
    ] = None,
) -> None:
    """Cut an adapter to a lower rank, by SVD."""
    from veneer.cli.study import refuse_unused, resize_command
    from veneer.study.ranks import RankStudyOptions

    if not study:
        refuse_unused({"--data": data, "--margin": margin}, "--study")
    default = RankStudyOptions().margin
    options = RankStudyOptions(base=base, data=data, margin=default if margin is None else margin)
    resize_command(file, rank or (), out, options, measured=study)


@adapter.command("merge")
def merge(
    file: _AdapterFile,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the merged model goes; must not exist.")],
    base: _Base = None,
    scale: _Scale = 1.0,
) -> None:
    """Write the base with the adapter merged into it."""
    from veneer.verbs.merge import merge_adapter

    print(merge_adapter(file, out, base=base, scale=scale))
