"""One run, whole: from a configuration to a folder with an adapter, its card, its sheet and its score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veneer import __version__
from veneer.adapter.spec import Factors
from veneer.config.load import resolve, write_config
from veneer.config.schema import RunConfig
from veneer.data.preflight import Dataset, read_prior, survey
from veneer.errors import UserError
from veneer.evaluate.heldout import Score, evaluate
from veneer.family.base import Family
from veneer.family.registry import BUNDLED
from veneer.files import atomic_write
from veneer.keyed import key
from veneer.plan.account import plan
from veneer.run.base import load_base
from veneer.run.compare import paint, side_by_side, subjects_of
from veneer.run.folder import CARD, CHECKPOINTS, CONFIG, LOG, SAMPLES, SHEET, clear, make_writable, write_picture
from veneer.run.identity import Identity, identify
from veneer.run.keeping import Keeper
from veneer.run.lock import locked
from veneer.run.log import EventLog, Teller, cut_log
from veneer.run.resume import Resume, Resumed, check_same, find_start
from veneer.run.stopping import Interrupted, stopping_at_signals
from veneer.sample.generate import generate
from veneer.sample.sheet import sheet
from veneer.train.events import CheckpointDue, Finished, SampleDue, Stopped, Warned
from veneer.train.loop import Trainer
from veneer.train.step import NonFinite
from veneer.weights.card import CardFacts, model_card
from veneer.weights.checkpoint import Checkpoint
from veneer.weights.file import FILE_NAME, AdapterFile, save

__all__ = ["Listener", "PriorPainting", "Result", "Saved", "Surveyed", "paint_prior", "run_training"]

_PRIOR_BATCH = 8


@dataclass(frozen=True)
class Surveyed:
    """The pictures were looked over; comes before anything that takes long."""

    train: int
    held_out: int
    rejected: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PriorPainting:
    """The base begins to paint pictures of the class, which takes a while."""

    count: int
    prompt: str
    folder: Path


@dataclass(frozen=True)
class Saved:
    """The adapter is on disk."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    Attributes:
        adapter: the file.
        sha256: of it.
        sheet: base and adapter side by side.
        score: on held-out pictures; None where there are none.
    """

    adapter: Path
    sha256: str
    sheet: Path
    score: Score | None


Listener = Callable[[object], None]
"""Is told each event of a run: those of this module and those of ``veneer.train.events``."""


def _ignore(event: object) -> None:
    """The listener that listens to nothing."""


def run_training(
    config: RunConfig, *, overwrite: bool = False, resume: Resume | None = None, listen: Listener = _ignore
) -> Result:
    """Train an adapter, save it, show it, measure it.

    Everything that can be refused is refused before training: the folder, the pictures, the base, the plan. SIGINT or
    SIGTERM while it trains ends it after the step with a checkpoint, and ``Interrupted`` is raised.

    Args:
        config: as the user wrote it; ``config.yaml`` in the output folder is the resolved one.
        overwrite: replace an earlier result, or an unfinished run, in the output folder.
        resume: go on from a checkpoint; None: start from nothing.
        listen: is told what happens.
    """
    make_writable(config.output, "choose another output=FOLDER")
    tell = Teller(listen)
    with locked(config.output):
        start = find_start(config.output, resume, overwrite, tell)
        pictures = survey(config.data)
        tell(_surveyed(pictures))
        family = load_base(config.base)
        config = resolve(config, family.resolution)
        paint_prior(config, family, tell)
        run = identify(config, pictures)
        if start is not None and resume is not None:
            check_same(start, run, resume.allow, tell)
        return _train(run, family, pictures, start, tell)


def _train(run: Identity, family: Family, pictures: Dataset, start: Checkpoint | None, tell: Teller) -> Result:
    with closing(Trainer(run.config, family, pictures)) as trainer:
        if start is not None:
            trainer.load_state_dict(start.state)
            tell(Resumed(start.step, start.path))
        # whatever could be refused has been, so an earlier result may go
        with _open_log(run.config, start) as log:
            tell.open(log)
            factors = _watch(trainer, run, family, pictures, _keeper(run, start, tell), tell)
            trainer.close()  # what follows wants the base as it was
            return _conclude(run, family, pictures, factors, tell)


def _open_log(config: RunConfig, start: Checkpoint | None) -> EventLog:
    """Make the folder ready for what is to come: empty, or as it was when the checkpoint was taken."""
    if start is None:
        clear(config.output)
    else:
        cut_log(config.output / LOG, start.step)
    write_config(config, config.output / CONFIG)
    return EventLog(config.output / LOG)


def _keeper(run: Identity, start: Checkpoint | None, tell: Listener) -> Keeper:
    last = None if start is None else (start.step, start.path)
    return Keeper(run.config.output / CHECKPOINTS, run.config.train.keep, run.origin, tell, last)


def _surveyed(pictures: Dataset) -> Surveyed:
    rejected = {str(one.path): one.reason for one in (*pictures.train.rejected, *pictures.held_out.rejected)}
    return Surveyed(len(pictures.train.samples), len(pictures.held_out.samples), rejected, pictures.notes)


def paint_prior(config: RunConfig, family: Family, listen: Listener = _ignore) -> None:
    """Let the base paint the pictures of the class that the prior's folder lacks (Ruiz et al. 2023, section 4.2)."""
    prior = config.data.prior
    if prior is None:
        return
    assert prior.path is not None, "resolve() names the folder"
    missing = prior.count - len(read_prior(config).samples)
    if missing > 0:
        plan(config, family)  # refuses what does not fit before minutes of painting
        listen(PriorPainting(missing, prior.prompt, prior.path))
    names = (f"prior-{number:05d}.png" for number in range(10**5))
    free = (path for path in (prior.path / name for name in names) if not path.exists())
    for start in range(0, missing, _PRIOR_BATCH):
        places = [next(free) for _ in range(min(_PRIOR_BATCH, missing - start))]
        seeds = [key(config.seed, place.name, "prior") for place in places]
        steps, guidance = config.sample.steps, config.sample.guidance
        painted = generate(family, [prior.prompt] * len(places), seeds, steps=steps, guidance=guidance)
        for place, picture in zip(places, painted, strict=True):
            write_picture(picture, place)


def _watch(
    trainer: Trainer, run: Identity, family: Family, pictures: Dataset, keeper: Keeper, tell: Listener
) -> Factors:
    """Tell each event of a training loop; paint samples and keep the state when they are due."""
    factors: Factors = {}
    with stopping_at_signals(trainer.stop) as caught:
        try:
            for event in trainer.run(run.metadata):
                tell(event)
                if isinstance(event, SampleDue):
                    _paint_samples(family, run.config, pictures, event.step, tell)
                elif isinstance(event, CheckpointDue):
                    keeper.write(event.step, trainer.state_dict())
                elif isinstance(event, Stopped):
                    raise Interrupted(caught.number, event.step, keeper.last)
                elif isinstance(event, Finished):
                    factors = event.factors
        except NonFinite as fault:
            raise fault.telling(keeper.last_in_words) from fault
    return factors


def _paint_samples(family: Family, config: RunConfig, pictures: Dataset, step: int, tell: Listener) -> None:
    prompts = subjects_of(config, pictures).prompts
    row = paint(family, prompts, config)
    try:
        write_picture(
            sheet([[picture] for picture in row], labels=prompts), config.output / SAMPLES / f"step-{step:09d}.png"
        )
    except UserError as fault:  # a sheet that finds no room is not worth the run
        tell(Warned(f"no samples of step {step}: {fault}"))


def _conclude(run: Identity, family: Family, pictures: Dataset, factors: Factors, listen: Listener) -> Result:
    """Save first: what follows only tells how good it is."""
    config, path = run.config, run.config.output / FILE_NAME
    _refuse_unchanged(factors, path)
    sha256 = save(AdapterFile(factors, run.metadata), path)
    listen(Saved(path, sha256))
    subjects = subjects_of(config, pictures)
    shown = write_picture(side_by_side(family, factors, subjects, config), config.output / SHEET)
    score = evaluate(config, family, pictures, factors) if pictures.held_out.samples else None
    if score is not None:
        listen(score)
    facts = _card_facts(config, sha256, subjects.prompts[0])
    atomic_write(config.output / CARD, model_card(facts, score).encode())
    return Result(path, sha256, shown, score)


def _refuse_unchanged(factors: Factors, path: Path) -> None:
    """B starts as zero; if all of it still is, the file would be a success that does nothing."""
    if not any(bool(each.up.any()) for each in factors.values()):
        what = "was not written: every B is still zero, so nothing was learned and the adapter does nothing"
        raise UserError(what, where=path, remedy="look for warnings in run.jsonl, or raise train.optimizer.rate")


def _card_facts(config: RunConfig, sha256: str, prompt: str) -> CardFacts:
    settings = _dotted(config.model_dump(mode="json", include={"seed", "adapter", "objective", "train"}))
    return CardFacts(
        title=config.output.resolve().name,
        base=config.base,
        license="other",  # the pictures' and the base's licences are their owner's to name
        prompt=prompt,
        weights=FILE_NAME,
        sha256=sha256,
        config=settings | {"data.resolution": config.data.resolution},
        trigger=config.data.trigger,
        base_id=None if config.base == BUNDLED or Path(config.base).exists() else config.base,
        pictures={SHEET: prompt},
        version=__version__,
    )


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _dotted(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value
    return flat
