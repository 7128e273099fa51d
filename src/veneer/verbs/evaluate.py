"""An adapter file measured: whether it helps, by how much, what it costs, and whether it copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from veneer.adapter.applied import applied
from veneer.adapter.protocol import AdapterWeights
from veneer.config.load import build_config, load_config, resolve
from veneer.config.schema import DataConfig, RunConfig, SourceConfig
from veneer.data.captions import Uncaptioned
from veneer.data.manifest import Manifest
from veneer.data.preflight import Dataset, read_prior, survey
from veneer.errors import UserError
from veneer.evaluate.comparison import DRIFT
from veneer.evaluate.copying import Painted, copying_sheet, find_copies, picture_of
from veneer.evaluate.drift import captions_of_others
from veneer.evaluate.heldout import choose_pictures, compare_adapter, pictures_by_kind
from veneer.evaluate.model_scores import Judges, Models, load_judges, score_pictures
from veneer.evaluate.results import Copying, Evaluation, PictureScore, write_evaluation
from veneer.family.loading import load_base
from veneer.family.protocol import Family
from veneer.family.registry import BUNDLED
from veneer.files import atomic_write
from veneer.rng import key
from veneer.run.folder import CONFIG, COPYING, EVALUATED, config_beside, make_writable
from veneer.run.identity import HASHES, PICTURES, TRIGGER
from veneer.sample.files import write_picture
from veneer.sample.generate import generate
from veneer.verbs.provenance import base_warnings, without_training_pictures
from veneer.weights.file import AdapterFile, file_in, info, load

__all__ = ["Evaluating", "Working", "evaluate_adapter", "folder_of"]

_OTHERS = "drift"


@dataclass(frozen=True)
class Evaluating:
    """What an adapter is measured on; what is not named is what its run's config, beside it, says.

    Attributes:
        base: of the adapter; without a config beside it the bundled one.
        data: folders of pictures that it never saw.
        training: folders of pictures that it was trained on.
        prior: folder of pictures of other things, which it should leave alone.
        trigger: words in the captions of ``data`` and ``training``; default: the run's, else those that the file tells.
        paint: pictures painted to look for copies, and by the base, where there is no prior, of other things; 0: none.
        models: of the user's, that judge pictures.
        out: folder for the results; default: the run's, or for a file one beside it that is named after it.
    """

    base: str | None = None
    data: tuple[Path, ...] = ()
    training: tuple[Path, ...] = ()
    prior: Path | None = None
    trigger: str | None = None
    paint: int = 16
    models: Models = field(default_factory=Models)
    out: Path | None = None


@dataclass(frozen=True)
class Working:
    """What is done next, and may take a while."""

    what: str


Callback = Callable[[Working], None]


def _ignore(event: Working) -> None:
    """The listener that listens to nothing."""


@dataclass(frozen=True)
class _Case:
    """All that an evaluation works on."""

    config: RunConfig
    family: Family
    weights: AdapterWeights
    pictures: Dataset
    out: Path
    callback: Callback


def evaluate_adapter(file: Path, how: Evaluating | None = None, callback: Callback = _ignore) -> Evaluation:
    """Measure an adapter, and write ``evaluation.json`` and ``copying.png``; two evaluations give equal files.

    Args:
        file: the adapter, or the folder of its run.
        how: base, pictures, models.
        listen: is told what takes a while.

    Raises:
        UserError: there is nothing to measure on, or what the user named is not there.
    """
    how = how or Evaluating()
    told = info(file).metadata  # what is wrong with the file is said before anything that takes long
    judges = load_judges(how.models)
    config, pictures, notes = _settle(file, how, told)
    out = folder_of(file, how)
    make_writable(out, "choose another --out")
    family = load_base(config.base)
    adapter = load(file, family.networks, family.key_names)
    case = _Case(resolve(config, family), family, adapter.weights, pictures, out, callback)
    notes += [*base_warnings(told, config.base), *_doubts(adapter, pictures)]
    others, source = _others(case, how)
    callback(Working("measuring the denoising loss of base and adapter"))
    found = compare_adapter(
        case.config, family, pictures_by_kind(case.config, pictures) | {DRIFT: others}, case.weights
    )
    copying = _copying(case, how.paint, notes)
    evaluation = Evaluation(
        **vars(found),
        adapter=file_in(file).name,
        base=config.base,
        step=_step_of(adapter),
        drift_source=source,
        copying=copying,
        scores=_scores(case, judges, notes),
        notes=tuple(notes),
    )
    write_evaluation(evaluation, out)
    return evaluation


def folder_of(file: Path, how: Evaluating) -> Path:
    """Where the results of an evaluation go."""
    return how.out or (file if file.is_dir() else file.with_name(f"{file.stem}-evaluation"))


def _settle(file: Path, how: Evaluating, told: Mapping[str, str]) -> tuple[RunConfig, Dataset, list[str]]:
    """The run's config and its pictures; for a file without one the plainest config, and what the user named."""
    path = config_beside(file)
    if how.trigger is not None and not (how.data or how.training):
        what = "is for the captions of pictures that are named, and none are"
        raise UserError(what, where="--trigger", remedy="name some with --data FOLDER, or leave it out")
    notes: list[str] = []
    if path.is_file():
        config = load_config(path)
        config = config.model_copy(update={"base": how.base or config.base})
        own = _own(config, how, notes)
    elif how.data:
        config, own = _plain_config(how, told.get(TRIGGER)), Dataset(Manifest(), Manifest())
    else:
        what, remedy = f"no {CONFIG} beside the adapter says what to measure on", "name pictures with --data FOLDER"
        raise UserError(what, where=file, remedy=remedy)
    words = how.trigger or config.data.trigger
    train = _read(how.training, config, words) if how.training else own.train
    if not how.data:  # the folder that was trained on holds what the run kept from training as well
        train = train.without(own.held_out)
    held_out, seen = without_training_pictures(_read(how.data, config, words) if how.data else own.held_out, train)
    notes += seen
    if not held_out.samples:
        notes.append("no picture is held out, so nothing tells what the adapter does with what it never saw")
    if not train.samples:
        notes.append(
            "the pictures that it was trained on are not named (--training), so nothing tells what it memorised"
        )
    return config, Dataset(train, held_out), notes


def _plain_config(how: Evaluating, trigger: str | None) -> RunConfig:
    sources = [{"path": str(folder)} for folder in how.data]
    data = {"sources": sources, "held_out": 0.0, "trigger": how.trigger or trigger}
    return build_config({"base": how.base or BUNDLED, "data": data}, "the command line")


def _own(config: RunConfig, how: Evaluating, notes: list[str]) -> Dataset:
    """The run's pictures; they may be gone if the user named others to measure on."""
    if how.data and how.training:
        return Dataset(Manifest(), Manifest())
    try:
        return survey(config.data)
    except UserError as fault:
        if not how.data:
            raise
        notes.append(f"the run's own pictures: {fault}")
        return Dataset(Manifest(), Manifest())


def _read(folders: Sequence[Path], config: RunConfig, trigger: str | None) -> Manifest:
    """All pictures of folders, captioned as the run's are, with a trigger of their own."""
    sources = tuple(SourceConfig(path=path) for path in folders)
    return survey(DataConfig(sources=sources, held_out=0.0, trigger=trigger, background=config.data.background)).train


def _doubts(adapter: AdapterFile, pictures: Dataset) -> list[str]:
    """A held-out picture may have been trained on if the run's folder was changed since."""
    told = adapter.metadata.get(HASHES[PICTURES])
    if told is None or not pictures.train.samples or told == pictures.train.fingerprint():
        return []
    return ["the training pictures are not those that the adapter's file tells of, so it may have seen held-out ones"]


def _others(case: _Case, how: Evaluating) -> tuple[Manifest, str | None]:
    """Pictures of other things, and where they are from: the user's, the run's of the class, or the base's own."""
    config, most = case.config, case.config.validation.pictures
    if how.prior is not None:
        return choose_pictures(_read_prior(how.prior, config), most), str(how.prior)
    of_class = read_prior(config)
    if of_class.samples:
        return choose_pictures(of_class, most), "pictures of the class"
    known = [sample.captions[0] for sample in (*case.pictures.train.samples, *case.pictures.held_out.samples)]
    captions = captions_of_others(config.base, known, how.paint)
    if not captions:
        return Manifest(), None
    case.callback(Working(f"painting {len(captions)} pictures of other things by the base"))
    return _paint_others(case, captions), "pictures that the base painted of other things"


def _read_prior(folder: Path, config: RunConfig) -> Manifest:
    """Pictures of other things; of the class, which a run paints or takes without captions, by its prior's prompt."""
    try:
        return _read([folder], config, trigger=None)
    except Uncaptioned as fault:
        if config.data.prior is None:
            raise fault.without_trigger() from None
    prior = config.data.prior.model_copy(update={"path": folder})
    return read_prior(config.model_copy(update={"data": config.data.model_copy(update={"prior": prior})}))


def _paint_others(case: _Case, captions: Sequence[str]) -> Manifest:
    folder = case.out / EVALUATED / _OTHERS
    for earlier in folder.glob("other-*"):
        earlier.unlink()
    for place, image in enumerate(_paint(case, captions, _OTHERS)):
        write_picture(image, folder / f"other-{place:03d}.png")
        atomic_write(folder / f"other-{place:03d}.txt", captions[place].encode())
    return _read([folder], case.config, trigger=None)


def _copying(case: _Case, count: int, notes: list[str]) -> Copying | None:
    """Paint captions of both kinds of pictures with the adapter, half of each, and look for their nearest ones."""
    train, held_out = case.pictures.train, case.pictures.held_out
    if not count or not train.samples:
        return None
    samples = [*choose_pictures(held_out, count // 2).samples]
    samples += choose_pictures(train, count - len(samples)).samples
    captions = [sample.captions[0] for sample in samples]
    case.callback(Working(f"painting {len(captions)} pictures to look for copies"))
    names = [f"{EVALUATED}/sample-{place:03d}.png" for place in range(len(captions))]
    images = _paint_adapted(case, captions, "copying")
    painted = [Painted(*each) for each in zip(captions, names, images, strict=True)]
    try:
        copying, left_out = find_copies(case.config, case.family, case.pictures, painted)
    except UserError as fault:
        notes.append(f"no look for copies: {fault}")
        return None
    notes += left_out
    for each in painted:
        write_picture(each.image, case.out / each.file)
    paper = copying_sheet(copying, painted, case.pictures, case.config, case.family.resolution)
    write_picture(paper, case.out / COPYING)
    return copying


def _scores(case: _Case, judges: Judges, notes: list[str]) -> tuple[PictureScore, ...]:
    """Let the user's models judge what base and adapter paint of the held-out captions."""
    samples = choose_pictures(case.pictures.held_out, case.config.validation.pictures).samples
    if not judges or not samples:
        return ()
    captions = [sample.captions[0] for sample in samples]
    case.callback(Working(f"painting {2 * len(captions)} pictures to be judged"))
    base, adapter = _paint(case, captions, "scores"), _paint_adapted(case, captions, "scores")
    real = [picture_of(sample, case.config, case.family.resolution) for sample in samples]
    scores, missing = score_pictures(judges, captions, real, base, adapter, case.config.seed)
    notes += missing
    return scores


def _paint(case: _Case, captions: Sequence[str], purpose: str) -> list[Image.Image]:
    """By the networks as they stand, from seeds of their own."""
    seeds = [key(case.config.seed, place, purpose) for place in range(len(captions))]
    how = case.config.sample
    return generate(case.family, captions, seeds, steps=how.steps, guidance=how.guidance)


def _paint_adapted(case: _Case, captions: Sequence[str], purpose: str) -> list[Image.Image]:
    with applied(case.family.networks, case.weights):
        return _paint(case, captions, purpose)


def _step_of(adapter: AdapterFile) -> int | None:
    told = adapter.metadata.get("veneer.steps", "")
    return int(told) if told.isdecimal() else None
