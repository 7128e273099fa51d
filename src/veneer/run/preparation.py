"""Inputs of a training, found and checked before it starts: pictures, base, settings, and a checkpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from veneer.config.fingerprint import config_hash
from veneer.config.load import resolve
from veneer.config.schema import RunConfig
from veneer.data.clip_frames import ClipFrames
from veneer.data.inspection import Advance
from veneer.data.notes import note_clips, note_small, note_tiny
from veneer.data.preflight import Dataset, survey
from veneer.data.split_record import read_split
from veneer.errors import UserError
from veneer.family.distillation import warn_of_distillation
from veneer.family.fingerprint import settings_hash
from veneer.family.loading import load_run_base
from veneer.family.protocol import Family
from veneer.family.references import check_references
from veneer.family.unread import caption_places, unread_notes
from veneer.run.events import Callback, SurveyAdvanced, Surveyed
from veneer.run.identity import Identity, identify
from veneer.run.prior import sample_prior
from veneer.run.resume import StartOptions, check_same, find_start
from veneer.sample.comparison import check_sample_references
from veneer.sample.generate import check_frames, check_steps
from veneer.train.distributed import ALONE, ProcessGroup
from veneer.train.events import Warned
from veneer.weights.checkpoint import Checkpoint, read_checkpoint

__all__ = ["TrainingInputs", "check_base", "check_validation", "input_warnings", "prepare", "text_warnings"]


_MOMENT = 0.5  # seconds


@dataclass(frozen=True)
class TrainingInputs:
    """All that a training is made of.

    Attributes:
        run: its resolved settings, and fingerprints of what they point to.
        family: the base, loaded.
        dataset: the pictures, surveyed.
        start: the checkpoint that it goes on from; None: it starts from nothing.
    """

    run: Identity
    family: Family
    dataset: Dataset
    start: Checkpoint | None = None


def prepare(
    config: RunConfig, options: StartOptions, emit: Callback, processes: ProcessGroup = ALONE
) -> TrainingInputs:
    """Find and load all that a training is made of; missing pictures of the class are painted.

    Args:
        config: as the user wrote it; its output folder is locked by the first process.
        options: where to start.
        emit: is called with what the user should know.
        processes: that train together, all of which prepare.

    Raises:
        UserError: something is missing, damaged, or does not fit the rest.
    """
    start = _find_start(config.output.dir, options, emit, processes)
    earlier = None if start is None else read_split(config.output.dir)
    dataset = survey(config.data, _survey_progress(emit), earlier)
    emit(Surveyed.of(dataset))
    check_validation(config, dataset)
    family = load_run_base(config)
    check_base(config, dataset, family)
    for warning in input_warnings(config, dataset, family):
        emit(warning)
    config = resolve(config, family)
    processes.first(lambda: sample_prior(config, family, emit))
    run = identify(config, dataset, family)
    _check_alike(run, processes)
    if start is not None:
        check_same(start, run, options.allow, emit)
    return TrainingInputs(run, family, dataset, start)


def check_base(config: RunConfig, dataset: Dataset, family: Family) -> None:
    """Check that the pictures, and what is to be painted, fit the base.

    Raises:
        UserError: they do not.
    """
    check_references(family, dataset.train.references, config.data.sources[0].path)
    check_sample_references(config, dataset, family)
    check_steps(family, config.sample.steps)
    check_frames(family, config.sample.frames)


def _survey_progress(emit: Callback) -> Advance:
    """Return what tells of a survey that takes longer than a moment, now and then."""
    due = time.monotonic() + _MOMENT

    def advance(done: int, total: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _MOMENT
            emit(SurveyAdvanced(done, total))

    return advance


def _find_start(folder: Path, options: StartOptions, emit: Callback, processes: ProcessGroup) -> Checkpoint | None:
    """Return the checkpoint that the first process finds; the others read the same."""
    start = find_start(folder, options, emit) if processes.is_first else None
    path = processes.all_gather(None if start is None else str(start.path))[0]
    return start if processes.is_first or path is None else read_checkpoint(Path(path))


def check_validation(config: RunConfig, dataset: Dataset) -> None:
    """Check that there are pictures to measure on, if ``validation.every`` asks for scores."""
    if config.validation.every and not dataset.held_out.samples:
        raise UserError(
            "no picture is held out to measure on while training",
            code="validation.nothing_held_out",
            where="validation.every",
            remedy="hold some out with data.held_out, or set it to 0",
        )


def _check_alike(run: Identity, processes: ProcessGroup) -> None:
    """Check that all processes train on the same: on several machines each has files of its own."""
    own = {"its configuration": config_hash(run.config), "the base's settings": settings_hash(run.settings)}
    gathered = processes.all_gather({**run.hashes, **own})
    for rank, hashes in enumerate(gathered):
        for name, value in hashes.items():
            if value != gathered[0][name]:
                raise UserError(
                    f"process {rank} has another one than process 0",
                    code="distributed.other_inputs",
                    where=name,
                    remedy="let every process see the same files",
                )


def input_warnings(config: RunConfig, dataset: Dataset, family: Family) -> list[Warned]:
    """Return warnings about the base, and about the pictures that need the base to be known.

    The survey has warned of small pictures already where the config names a resolution.
    """
    distilled = warn_of_distillation(config.base, family, config.adapter.training_adapter)
    base = [] if distilled is None else [Warned("family.distilled_base", distilled)]
    samples = dataset.train.samples
    notes = [] if config.data.resolution else note_small(samples, config.data, family.resolution)
    notes += note_tiny(samples, config.data, family.multiple)
    small = [Warned("data.small_pictures", text) for text in notes]
    small += [Warned("data.clips", text) for text in note_clips(samples, ClipFrames.of(config.data, family))]
    return [*base, *small, *_reference_warnings(dataset, family), *text_warnings(config, dataset, family)]


def _reference_warnings(dataset: Dataset, family: Family) -> list[Warned]:
    """Return a warning where a base that is made to edit is trained on pictures without references."""
    if not family.usual_references or dataset.train.references:
        return []
    text = "the base edits, and the pictures have no references: it is trained to paint their captions from nothing"
    return [Warned("data.no_references", f"{text} (data.sources.0.references=FOLDER names some)")]


def text_warnings(config: RunConfig, dataset: Dataset, family: Family) -> list[Warned]:
    """Return warnings about what the base does not see of the texts that a run shows to it."""
    others = [(prompt, "sample.prompts") for prompt in config.sample.prompts]
    others += [] if config.data.prior is None else [(config.data.prior.prompt, "data.prior.prompt")]
    places = caption_places(dataset.train, dataset.held_out, others=others)
    more = "or let data.token_windows be more" if family.token_windows < family.max_token_windows else ""
    notes = unread_notes(family.unread, places, trigger=config.data.trigger, remedy=more)
    return [Warned(**vars(note)) for note in notes]
