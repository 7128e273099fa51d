"""One run, whole: from a configuration to a folder with an adapter, its card, its sheet and its score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veneer import __version__
from veneer.adapter.spec import Factors
from veneer.config.load import resolve, write_config
from veneer.config.schema import RunConfig
from veneer.data.preflight import Dataset, read_prior, survey
from veneer.evaluate.heldout import Score, evaluate
from veneer.family.base import Family
from veneer.family.registry import BUNDLED
from veneer.files import atomic_write
from veneer.keyed import key
from veneer.plan.account import plan
from veneer.run.base import load_base
from veneer.run.compare import paint, side_by_side, subjects_of
from veneer.run.folder import CARD, CONFIG, LOG, SAMPLES, SHEET, EventLog, claim, clear, write_picture
from veneer.sample.generate import generate
from veneer.sample.sheet import sheet
from veneer.train.events import Event, Finished, SampleDue
from veneer.train.loop import Trainer
from veneer.weights.card import CardFacts, model_card
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


def run_training(config: RunConfig, *, overwrite: bool = False, listen: Listener = _ignore) -> Result:
    """Train an adapter, save it, show it, measure it.

    Everything that can be refused is refused before training: the folder, the pictures, the base, the plan.

    Args:
        config: as the user wrote it; ``config.yaml`` in the output folder is the resolved one.
        overwrite: replace an earlier result in the output folder.
        listen: is told what happens.
    """
    claim(config.output, overwrite=overwrite)
    pictures = survey(config.data)
    surveyed = _surveyed(pictures)
    listen(surveyed)
    family = load_base(config.base)
    config = resolve(config, family.resolution)
    paint_prior(config, family, listen)
    with closing(Trainer(config, family, pictures)) as trainer:
        # whatever could be refused has been, so an earlier result may go
        clear(config.output)
        write_config(config, config.output / CONFIG)
        with EventLog(config.output / LOG) as log:
            log(surveyed)

            def tell(event: object) -> None:
                log(event)
                listen(event)

            factors = _watch(trainer.run(_metadata(config)), config, family, pictures, tell)
            trainer.close()  # what follows wants the base as it was
            return _conclude(config, family, pictures, factors, tell)


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


def _watch(events: Iterable[Event], config: RunConfig, family: Family, pictures: Dataset, listen: Listener) -> Factors:
    """Tell each event of a training loop, and paint samples when they are due."""
    prompts = subjects_of(config, pictures).prompts
    factors: Factors = {}
    for event in events:
        listen(event)
        if isinstance(event, SampleDue):
            row = paint(family, prompts, config)
            path = config.output / SAMPLES / f"step-{event.step:09d}.png"
            write_picture(sheet([[picture] for picture in row], labels=prompts), path)
        elif isinstance(event, Finished):
            factors = event.factors
    return factors


def _conclude(config: RunConfig, family: Family, pictures: Dataset, factors: Factors, listen: Listener) -> Result:
    """Save first: what follows only tells how good it is."""
    path = config.output / FILE_NAME
    sha256 = save(AdapterFile(factors, _metadata(config)), path)
    listen(Saved(path, sha256))
    subjects = subjects_of(config, pictures)
    shown = write_picture(side_by_side(family, factors, subjects, config), config.output / SHEET)
    score = evaluate(config, family, pictures, factors) if pictures.held_out.samples else None
    if score is not None:
        listen(score)
    facts = _card_facts(config, sha256, subjects.prompts[0])
    atomic_write(config.output / CARD, model_card(facts, score).encode())
    return Result(path, sha256, shown, score)


def _metadata(config: RunConfig) -> dict[str, str]:
    """What the file tells of itself; no paths of the machine it was made on, so that equal runs give equal bytes."""
    told = {
        "veneer.version": __version__,
        "veneer.base": Path(config.base).name,
        "veneer.steps": str(config.train.steps),
    }
    return told if config.data.trigger is None else told | {"veneer.trigger": config.data.trigger}


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
