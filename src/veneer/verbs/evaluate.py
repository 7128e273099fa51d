"""Evaluate an adapter file: whether it helps, by how much, what else it changes, and whether it copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from veneer.adapter.apply import apply_adapter
from veneer.adapter.protocol import AdapterWeights
from veneer.config.load import resolve
from veneer.config.schema import RunConfig
from veneer.data.manifest import Manifest, Sample
from veneer.data.preflight import Dataset, read_prior
from veneer.errors import UserError
from veneer.evaluate.comparison import DRIFT
from veneer.evaluate.copying import SampledPicture, find_copies
from veneer.evaluate.copying_sheet import centered_picture, copying_sheet
from veneer.evaluate.heldout import choose_pictures, compare_adapter, pictures_by_kind
from veneer.evaluate.model_scores import score_pictures
from veneer.evaluate.prompt_fidelity import measure_prompt_fidelity
from veneer.evaluate.prompts import drift_prompts, fidelity_prompts
from veneer.evaluate.results import Copying, Evaluation, PictureScore, PromptFidelity, write_evaluation
from veneer.evaluate.score_models import ScoreModels, load_score_models
from veneer.family.loading import load_base, text_options
from veneer.family.protocol import Family
from veneer.family.unread import caption_places, unread_notes
from veneer.files import atomic_write, opens_paths
from veneer.rng import key
from veneer.run.folder import COPYING, EVALUATED, writable
from veneer.run.identity import HASHES, PICTURES
from veneer.sample.comparison import open_references
from veneer.sample.files import write_picture
from veneer.sample.generate import generate_quietly
from veneer.verbs.evaluation_inputs import (
    EvaluationInputs,
    EvaluationOptions,
    read_inputs,
    survey_folders,
    survey_prior,
)
from veneer.verbs.provenance import base_warnings
from veneer.weights.file import AdapterFile, file_in, info, load
from veneer.weights.formats.left_out import LeftOut

__all__ = ["StageStarted", "evaluate_adapter", "evaluation_folder"]

_DRIFT = "drift"
"""Folder of the samples of other things, and the purpose that their seeds are keyed by."""


@dataclass(frozen=True)
class StageStarted:
    """A part of the evaluation has started that may take a while.

    Attributes:
        description: of it, for the user.
    """

    description: str


Callback = Callable[[StageStarted], None]


@dataclass(frozen=True)
class _Subject:
    """The adapter that is evaluated, its base and its pictures."""

    config: RunConfig
    family: Family
    weights: AdapterWeights
    pictures: Dataset
    out: Path
    callback: Callback


@opens_paths
def evaluate_adapter(
    file: Path, options: EvaluationOptions | None = None, callback: Callback = lambda event: None
) -> Evaluation:
    """Measure an adapter, and write ``evaluation.json`` and ``copying.png``; two evaluations write the same bytes.

    Args:
        file: the adapter, or the folder of its run.
        options: base, pictures, models.
        callback: is called before each part that takes a while.

    Raises:
        UserError: there is nothing to measure on, or a file, a base or a model cannot be read.
    """
    options = options or EvaluationOptions()
    metadata = info(file).metadata  # faults of the file are found before anything that takes long
    models = load_score_models(options.models)
    inputs = read_inputs(file, options, metadata)
    out = evaluation_folder(file, options)
    with writable(out, "choose another --out"):
        return _evaluate_in(out, file, options, inputs, models, callback)


def _evaluate_in(
    out: Path,
    file: Path,
    options: EvaluationOptions,
    inputs: EvaluationInputs,
    models: ScoreModels,
    callback: Callback,
) -> Evaluation:
    """Load base and adapter, measure, and write the results."""
    family = load_base(inputs.config.base, **text_options(inputs.config.data.token_windows))
    left_out: list[LeftOut] = []
    adapter = load(file, family.networks, left_out=left_out)
    config = _without_lost_training_adapter(inputs.config, more := list[str]())
    subject = _Subject(resolve(config, family), family, adapter.weights, inputs.pictures, out, callback)
    notes = [
        *inputs.notes,
        *more,
        *map(str, left_out),
        *base_warnings(adapter.metadata, inputs.config.base),
        *_picture_warnings(adapter, inputs.pictures),
    ]
    evaluation = _evaluate(file_in(file).name, subject, options, models, _step_of(adapter), notes)
    write_evaluation(evaluation, out)
    return evaluation


def _without_lost_training_adapter(config: RunConfig, notes: list[str]) -> RunConfig:
    """Return a config whose training adapter is there; if its file is gone, the adapter is measured without it."""
    path = config.adapter.training_adapter
    if path is None or path.exists():
        return config
    notes.append(f"the training adapter {path} is not there, so base and adapter are measured without it")
    return config.model_copy(update={"adapter": config.adapter.model_copy(update={"training_adapter": None})})


@opens_paths
def evaluation_folder(file: Path, options: EvaluationOptions) -> Path:
    """Return the folder for the results of an evaluation."""
    return options.out or (file if file.is_dir() else file.with_name(f"{file.stem}-evaluation"))


def _evaluate(
    name: str,
    subject: _Subject,
    options: EvaluationOptions,
    models: ScoreModels,
    step: int | None,
    notes: list[str],
) -> Evaluation:
    """Do all parts of an evaluation, one after another."""
    config = subject.config
    _check_alike(subject.pictures)
    drift, drift_source = _drift_pictures(subject, options)
    subject.callback(StageStarted("measuring the denoising loss of base and adapter"))
    kinds = pictures_by_kind(config, subject.pictures) | {DRIFT: drift}
    trigger = options.trigger or config.data.trigger
    unread = unread_notes(subject.family.unread, caption_places(*kinds.values()), trigger=trigger)
    notes += map(str, unread)
    comparison = compare_adapter(config, subject.family, kinds, subject.weights)
    fidelity = _prompt_fidelity(subject, trigger, options.samples, notes)
    copying = _copying(subject, options.samples, notes)
    scores = _scores(subject, models, notes)
    return Evaluation(
        **vars(comparison),
        adapter=name,
        base=config.base,
        step=step,
        drift_source=drift_source,
        copying=copying,
        scores=scores,
        prompt_fidelity=fidelity,
        notes=tuple(notes),
    )


def _check_alike(pictures: Dataset) -> None:
    """Refuse to compare pairs with pictures that have other references, or none."""
    train, held_out = pictures.train, pictures.held_out
    if train.samples and held_out.samples and train.references != held_out.references:
        what = (
            f"the training pictures have {train.references} references each, those to measure on {held_out.references}"
        )
        remedy = "name those of each picture in a metadata.jsonl"
        raise UserError(what, code="evaluate.other_references", remedy=remedy)


def _picture_warnings(adapter: AdapterFile, pictures: Dataset) -> list[str]:
    """Return a warning if the run's folder was changed since, so that held-out pictures may have been trained on."""
    recorded = adapter.metadata.get(HASHES[PICTURES])
    if recorded is None or not pictures.train.samples or recorded == pictures.train.fingerprint():
        return []
    return ["the training pictures are not those that the adapter's file names, so it may have seen held-out ones"]


def _drift_pictures(subject: _Subject, options: EvaluationOptions) -> tuple[Manifest, str | None]:
    """Return pictures of other things, and where they are from: the user's, the run's class, or sampled by the base."""
    config, limit = subject.config, subject.config.validation.pictures
    if options.prior is not None:
        return choose_pictures(survey_prior(options.prior, config), limit), str(options.prior)
    of_class = read_prior(config)
    if of_class.samples:
        return choose_pictures(of_class, limit), "pictures of the class"
    samples = (*subject.pictures.train.samples, *subject.pictures.held_out.samples)
    if 0 not in subject.family.reference_counts:
        return Manifest(), None
    prompts = drift_prompts(config.base, [sample.captions[0] for sample in samples], options.samples)
    if not prompts:
        return Manifest(), None
    subject.callback(StageStarted(f"sampling {len(prompts)} pictures of other things with the base"))
    return _sample_drift_pictures(subject, prompts), "pictures of other things that the base sampled"


def _sample_drift_pictures(subject: _Subject, prompts: Sequence[str]) -> Manifest:
    """Sample prompts with the base, and write the pictures with their captions."""
    folder = subject.out / EVALUATED / _DRIFT
    for earlier in folder.glob("other-*"):
        earlier.unlink()
    for number, image in enumerate(_sample(subject, prompts, (), _DRIFT)):
        write_picture(image, folder / f"other-{number:03d}.png")
        atomic_write(folder / f"other-{number:03d}.txt", prompts[number].encode())
    return survey_folders([folder], subject.config, trigger=None).train


def _prompt_fidelity(subject: _Subject, trigger: str | None, count: int, notes: list[str]) -> PromptFidelity | None:
    """Sample captions, and prompts of other things, with base and adapter, and see what the base takes them for."""
    if not count:
        return None
    if 0 not in subject.family.reference_counts:
        notes.append("whether things are kept was not measured: this base edits pictures and paints none from a text")
        return None
    captions = [sample.captions[0] for sample in subject.pictures.held_out.samples]
    prompts = fidelity_prompts(subject.config.base, captions, trigger, count)
    if len(prompts) < 2:
        notes.append("whether things are kept was not measured: it takes two prompts")
        return None
    subject.callback(StageStarted(f"sampling {2 * len(prompts)} pictures to see whether they show their prompts"))
    return measure_prompt_fidelity(subject.config, subject.family, subject.weights, prompts)


def _copying(subject: _Subject, count: int, notes: list[str]) -> Copying | None:
    """Sample captions of held-out and training pictures with the adapter, half of each, and find their nearest ones."""
    train, held_out = subject.pictures.train, subject.pictures.held_out
    if not count or not train.samples:
        return None
    pictures = [*choose_pictures(held_out, count // 2).samples]
    pictures += choose_pictures(train, count - len(pictures)).samples
    captions = [picture.captions[0] for picture in pictures]
    subject.callback(StageStarted(f"sampling {len(captions)} pictures to look for copies"))
    files = [f"{EVALUATED}/sample-{number:03d}.png" for number in range(len(captions))]
    images = _sample_adapted(subject, captions, _references(subject, pictures), "copying")
    samples = [SampledPicture(*parts) for parts in zip(captions, files, images, strict=True)]
    try:
        copying, left_out = find_copies(subject.config, subject.family, subject.pictures, samples)
    except UserError as fault:
        notes.append(f"copies were not looked for: {fault}")
        return None
    notes += left_out
    _write_samples(subject, copying, samples)
    return copying


def _write_samples(subject: _Subject, copying: Copying, samples: Sequence[SampledPicture]) -> None:
    """Write samples, and the sheet of those nearest to a training picture."""
    for sample in samples:
        write_picture(sample.image, subject.out / sample.file)
    paper = copying_sheet(copying, samples, subject.pictures, subject.config, subject.family.resolution)
    write_picture(paper, subject.out / COPYING)


def _scores(subject: _Subject, models: ScoreModels, notes: list[str]) -> tuple[PictureScore, ...]:
    """Sample the held-out captions with base and adapter, and let the user's models score the pictures."""
    pictures = choose_pictures(subject.pictures.held_out, subject.config.validation.pictures).samples
    if not models or not pictures:
        return ()
    captions = [picture.captions[0] for picture in pictures]
    subject.callback(StageStarted(f"sampling {2 * len(captions)} pictures to score"))
    notes += models.unread(captions)
    references = _references(subject, pictures)
    base, adapter = (sample(subject, captions, references, "scores") for sample in (_sample, _sample_adapted))
    real = [centered_picture(picture, subject.config, subject.family.resolution) for picture in pictures]
    scores, missing = score_pictures(models, captions, real, base, adapter, subject.config.seed)
    notes += missing
    return scores


_References = Sequence[Sequence[Image.Image]]


def _references(subject: _Subject, pictures: Sequence[Sample]) -> _References:
    """Return the references of pictures; nothing where they have none."""
    places = [[one.location for one in picture.references] for picture in pictures]
    return open_references(places, subject.config.data.background) if any(places) else ()


def _sample(subject: _Subject, captions: Sequence[str], references: _References, purpose: str) -> list[Image.Image]:
    """Sample captions with the networks as they stand, from seeds of their own for each purpose."""
    seeds = [key(subject.config.seed, number, purpose) for number in range(len(captions))]
    steps, guidance = subject.config.sample.steps, subject.config.sample.guidance
    return generate_quietly(subject.family, captions, seeds, steps=steps, guidance=guidance, references=references)


def _sample_adapted(
    subject: _Subject, captions: Sequence[str], references: _References, purpose: str
) -> list[Image.Image]:
    """Sample captions with the adapter."""
    with apply_adapter(subject.family.networks, subject.weights):
        return _sample(subject, captions, references, purpose)


def _step_of(adapter: AdapterFile) -> int | None:
    """Return the steps that an adapter was trained; None if its file does not say."""
    steps = adapter.metadata.get("veneer.steps", "")
    return int(steps) if steps.isdecimal() else None
