"""The inputs of an evaluation: the run's configuration, and pictures that the adapter was and was not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from veneer.config.data_config import DataConfig
from veneer.config.load import build_config, load_config
from veneer.config.schema import RunConfig
from veneer.config.source_config import SourceConfig
from veneer.data.captions import Uncaptioned
from veneer.data.manifest import Manifest
from veneer.data.preflight import Dataset, read_prior, survey
from veneer.errors import UserError
from veneer.evaluate.score_models import ScoreModelPaths
from veneer.family.registry import BUNDLED
from veneer.family.windows import token_windows_of
from veneer.files import opens_paths
from veneer.run.folder import CONFIG, config_beside
from veneer.run.identity import TRIGGER
from veneer.verbs.provenance import survey_run, without_training_pictures

__all__ = ["EvaluationInputs", "EvaluationOptions", "read_inputs", "survey_folders", "survey_prior"]

_NO_PICTURES = Dataset(Manifest(), Manifest())


@opens_paths
@dataclass(frozen=True)
class EvaluationOptions:
    """The options of an evaluation; what is not given is what the run's config, beside the adapter, says.

    Attributes:
        base: of the adapter; without a config beside it the bundled one.
        data: folders of pictures that it never saw.
        training: folders of pictures that it was trained on.
        prior: folder of pictures of other things, which it should not change.
        trigger: words in the captions of ``data`` and ``training``; default: the run's, else those in the file.
        samples: pictures sampled to see whether they show their prompts, to look for copies, and with the base of other
            things, if there is no prior; 0: none.
        models: of the user's, that score sampled pictures.
        out: folder for the results; default: the run's, or for a file one beside it that is named after it.
    """

    base: str | None = None
    data: tuple[Path, ...] = ()
    training: tuple[Path, ...] = ()
    prior: Path | None = None
    trigger: str | None = None
    samples: int = 32
    models: ScoreModelPaths = field(default_factory=ScoreModelPaths)
    out: Path | None = None


@dataclass(frozen=True)
class EvaluationInputs:
    """The configuration and the pictures that an adapter is evaluated with.

    Attributes:
        config: of its run, as far as it is known.
        pictures: that it was trained on, and that it never saw.
        notes: on what is missing or doubtful, a sentence each.
    """

    config: RunConfig
    pictures: Dataset
    notes: tuple[str, ...]


def read_inputs(file: Path, options: EvaluationOptions, metadata: Mapping[str, str]) -> EvaluationInputs:
    """Read the configuration and the pictures to evaluate an adapter with.

    Args:
        file: the adapter, or the folder of its run.
        options: the user's.
        metadata: of the adapter's file.

    Raises:
        UserError: there are no pictures to measure on, or they cannot be read.
    """
    if options.trigger is not None and not (options.data or options.training):
        what, remedy = "is for the captions of named pictures, and none are named", "name some with --data FOLDER"
        raise UserError(what, code="evaluate.trigger_without_data", where="--trigger", remedy=remedy)
    notes: list[str] = []
    config, run_pictures = _config_and_pictures(file, options, metadata, notes)
    pictures = _choose_sources(file, options, config, run_pictures, notes)
    if not pictures.held_out.samples:
        notes.append("no picture is held out, so the effect on pictures that it never saw is not known")
    if not pictures.train.samples:
        notes.append("the training pictures are not named (--training), so what it memorised is not known")
    return EvaluationInputs(config, pictures, tuple(notes))


def _config_and_pictures(
    file: Path, options: EvaluationOptions, metadata: Mapping[str, str], notes: list[str]
) -> tuple[RunConfig, Dataset]:
    """Return the run's config and pictures; for a file without a config a default one, and no pictures."""
    path = config_beside(file)
    if path.is_file():
        config = load_config(path)
        config = config.model_copy(update={"base": options.base or config.base})
        return config, _run_pictures(config, file, options, notes)
    if options.data:
        return _default_config(options, metadata), _NO_PICTURES
    what, remedy = f"no {CONFIG} beside the adapter names pictures to measure on", "name some with --data FOLDER"
    raise UserError(what, code="evaluate.no_pictures", where=file, remedy=remedy)


def _default_config(options: EvaluationOptions, metadata: Mapping[str, str]) -> RunConfig:
    sources = [{"path": str(folder)} for folder in options.data]
    trigger, windows = options.trigger or metadata.get(TRIGGER), token_windows_of(metadata)
    data = {"sources": sources, "held_out": 0.0, "trigger": trigger, "token_windows": windows}
    return build_config({"base": options.base or BUNDLED, "data": data}, "the command line")


def _run_pictures(config: RunConfig, file: Path, options: EvaluationOptions, notes: list[str]) -> Dataset:
    """Return the run's pictures; they may be gone if the user named others to measure on."""
    if options.data and options.training:
        return _NO_PICTURES
    try:
        pictures, warnings = survey_run(config, file)
    except UserError as fault:
        if not options.data:
            raise
        pictures, warnings = _NO_PICTURES, [f"the run's own pictures: {fault}"]
    notes += warnings
    return pictures


def _choose_sources(
    file: Path, options: EvaluationOptions, config: RunConfig, run_pictures: Dataset, notes: list[str]
) -> Dataset:
    """Return the pictures that the user named, and in place of those not named the run's."""
    trigger = options.trigger or config.data.trigger
    named = [
        survey_folders(folders, config, trigger) if folders else None for folders in (options.training, options.data)
    ]
    notes += dict.fromkeys(note for dataset in named if dataset is not None for note in dataset.notes)
    train, held_out = (dataset.train if dataset is not None else None for dataset in named)
    train = run_pictures.train if train is None else train
    if not options.data:  # the folder that was trained on contains the held-out pictures as well
        train = train.without(run_pictures.held_out)
    looks = None if named[1] is None else named[1].split
    held_out = run_pictures.held_out if held_out is None else held_out
    held_out, warnings = without_training_pictures(held_out, train, looks, file)
    notes += warnings
    return Dataset(train, held_out)


def survey_folders(folders: Sequence[Path], config: RunConfig, trigger: str | None) -> Dataset:
    """Return all pictures of folders, none held out, captioned as the run's are, with a trigger of their own."""
    sources = tuple(SourceConfig(path=path, captions=config.data.sources[0].captions) for path in folders)
    return survey(DataConfig(sources=sources, held_out=0.0, trigger=trigger, background=config.data.background))


def survey_prior(folder: Path, config: RunConfig) -> Manifest:
    """Return pictures of other things; without captions they are of the run's class, with the prompt of its prior.

    Raises:
        UserError: they have no captions, and the run has no prior.
    """
    try:
        return survey_folders([folder], config, trigger=None).train
    except Uncaptioned as fault:
        if config.data.prior is None:
            raise fault.without_trigger() from None
    prior = config.data.prior.model_copy(update={"path": folder})
    return read_prior(config.model_copy(update={"data": config.data.model_copy(update={"prior": prior})}))
