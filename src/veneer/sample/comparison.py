"""Before and after: the base, the adapter and the real picture side by side, painted from the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from veneer.adapter.apply import apply_adapter
from veneer.adapter.protocol import AdapterWeights
from veneer.config.colour import rgb
from veneer.config.schema import RunConfig
from veneer.data.decode import decode
from veneer.data.location import Location
from veneer.data.manifest import Sample
from veneer.data.preflight import Dataset
from veneer.data.unreadable import Unreadable
from veneer.errors import UserError
from veneer.family.prompt_cache import PromptCache, adapts_texts
from veneer.family.protocol import Family
from veneer.family.references import check_references
from veneer.sample.clip import Clip
from veneer.sample.gallery import PictureNote, sampler_name
from veneer.sample.generate import clips_quietly
from veneer.sample.sheet import sheet
from veneer.sample.timelapse import spread_evenly

__all__ = [
    "Comparison",
    "SamplePrompts",
    "SampleSettings",
    "check_sample_references",
    "compare_pictures",
    "comparison_sheet",
    "open_references",
    "paint",
    "sample_prompts",
]

_COUNT = 8  # columns of a sheet
_CELL = 128  # side of a picture on it, in pixels
_SHOWN = 3  # frames of a clip on it
_REFERENCE = "reference"


@dataclass(frozen=True)
class SamplePrompts:
    """Prompts that are painted to show an adapter.

    Attributes:
        prompts: one a column of the sheet.
        real: the real picture of each prompt; empty where the user named the prompts.
        references: where the pictures lie that each prompt is applied to; empty where prompts are painted from nothing.
    """

    prompts: tuple[str, ...]
    real: tuple[Sample, ...] = ()
    references: tuple[tuple[Location, ...], ...] = ()


def sample_prompts(config: RunConfig, pictures: Dataset) -> SamplePrompts:
    """Return the config's prompts, else captions of pictures that are held out, else of those trained on."""
    own = config.sample
    if own.prompts:
        named = tuple(tuple(map(Location, files)) for files in own.references)
        every = named * len(own.prompts) if len(named) == 1 else named
        return SamplePrompts(own.prompts, references=every)
    samples = (pictures.held_out.samples or pictures.train.samples)[:_COUNT]
    references = tuple(tuple(one.location for one in sample.references) for sample in samples)
    return SamplePrompts(
        tuple(sample.captions[0] for sample in samples), samples, references if any(references) else ()
    )


def check_sample_references(config: RunConfig, pictures: Dataset, family: Family) -> None:
    """Check before a run that what it will paint can be painted: with references where it learns to edit.

    Raises:
        UserError: prompts have no references and the pictures have, the base takes another number, or a file is no
            picture.
    """
    subjects, count = sample_prompts(config, pictures), pictures.train.references
    if count and not subjects.references:
        what = f"is empty, but the pictures have {count} references each, so painting needs some as well"
        raise UserError(
            what, code="sample.no_references", where="sample.references", remedy="name a file for each prompt"
        )
    for each in subjects.references or ((),):
        check_references(family, len(each), "sample.references")
    open_references(subjects.references, config.data.background)


def open_references(places: Sequence[Sequence[Location]], background: str) -> list[list[Image.Image]]:
    """Decode references as those that are trained on are decoded.

    Raises:
        UserError: one is missing or no picture.
    """
    return [[_open(place, background) for place in several] for several in places]


@dataclass(frozen=True)
class SampleSettings:
    """How a run's pictures are painted.

    Attributes:
        seed: of the first picture; each one after it has the next.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        frames: of clips; 1 of pictures.
    """

    seed: int
    steps: int
    guidance: float
    frames: int = 1

    @classmethod
    def of(cls, config: RunConfig) -> SampleSettings:
        """Return a run's settings."""
        return cls(config.seed, config.sample.steps, config.sample.guidance, config.sample.frames)

    def notes(self, prompts: Sequence[str], sampler: str) -> tuple[PictureNote, ...]:
        """Return how the picture of each prompt is painted."""
        seeds = enumerate(prompts, start=self.seed)
        return tuple(PictureNote(prompt, seed, self.steps, self.guidance, sampler) for seed, prompt in seeds)


def paint(
    family: Family,
    prompts: Sequence[str],
    settings: SampleSettings,
    references: Sequence[Sequence[Image.Image]] = (),
    cache: PromptCache | None = None,
) -> list[Clip]:
    """Return one clip a prompt, of one frame if it is a picture, by the networks as they stand, each from its seed.

    Args:
        family: the base.
        prompts: what to paint.
        settings: how.
        references: those of each prompt; empty: there are none.
        cache: as of :func:`veneer.sample.generate.generate_quietly`.
    """
    seeds = [settings.seed + place for place in range(len(prompts))]
    return clips_quietly(
        family,
        prompts,
        seeds,
        frames=settings.frames,
        steps=settings.steps,
        guidance=settings.guidance,
        references=references,
        cache=cache,
    )


@dataclass(frozen=True)
class Comparison:
    """Pictures of the same prompts and seeds, as large as they were painted.

    Attributes:
        prompts: one a column.
        rows: the base's pictures, the adapter's, and the real ones and references where there are some, by name; of
            clips some frames each.
        adapter: the adapter's clips, a picture being one frame.
        notes: how each of the adapter's was painted.
    """

    prompts: tuple[str, ...]
    rows: Mapping[str, Sequence[Image.Image]]
    adapter: Sequence[Clip]
    notes: tuple[PictureNote, ...]

    def sheet(self) -> Image.Image:
        """Return them on one page, a row a name."""
        return sheet(list(self.rows.values()), columns=self.prompts, labels=list(self.rows), cell=_CELL)

    @property
    def note(self) -> dict[str, Any]:
        """The note for the file of the sheet, by which it is taken apart again."""
        return {"cell": _CELL, "columns": list(self.prompts), "labels": list(self.rows)}


def compare_pictures(family: Family, weights: AdapterWeights, subjects: SamplePrompts, config: RunConfig) -> Comparison:
    """Paint each subject by the base and by the adapter; the real picture is beside them where there is one.

    So are references, a row for each of a prompt. The adapter is applied for the while; afterwards the family's
    networks have their own bits again.
    """
    settings = SampleSettings.of(config)
    references = open_references(subjects.references, config.data.background)
    rows: dict[str, Sequence[Image.Image]] = _reference_rows(references)
    cache = None if adapts_texts(family, weights) else PromptCache.of(config, family)
    rows |= _frame_rows("base", paint(family, subjects.prompts, settings, references, cache))
    with apply_adapter(family.networks, weights):
        adapted = paint(family, subjects.prompts, settings, references, cache)
    rows |= _frame_rows("adapter", adapted)
    if subjects.real:
        rows["real"] = [_open(sample.location, config.data.background) for sample in subjects.real]
    return Comparison(
        subjects.prompts, rows, adapted, settings.notes(subjects.prompts, sampler_name(family.pipeline(texts=False)))
    )


def comparison_sheet(
    family: Family, weights: AdapterWeights, subjects: SamplePrompts, config: RunConfig
) -> Image.Image:
    """Return a sheet with a column a subject: the base's picture, the adapter's, and the real one where there is one.

    The adapter is applied for the while; afterwards the family's networks have their own bits again.
    """
    return compare_pictures(family, weights, subjects, config).sheet()


def _frame_rows(name: str, clips: Sequence[Clip]) -> dict[str, Sequence[Image.Image]]:
    """Return the rows of a sheet that show clips, a column each: one of pictures, else one a frame that is shown."""
    frames = len(clips[0])
    if frames == 1:
        return {name: [clip[0] for clip in clips]}
    shown = spread_evenly(range(frames), _SHOWN)
    return {f"{name}, frame {place + 1}": [clip[place] for clip in clips] for place in shown}


def _reference_rows(references: Sequence[Sequence[Image.Image]]) -> dict[str, Sequence[Image.Image]]:
    columns = list(zip(*references, strict=False))
    names = [_REFERENCE if len(columns) == 1 else f"{_REFERENCE} {number}" for number in range(1, len(columns) + 1)]
    return dict(zip(names, columns, strict=True))


def _open(place: Location, background: str) -> Image.Image:
    try:
        return decode(place.read(), rgb(background))
    except (OSError, Unreadable) as error:
        reason = getattr(error, "strerror", None) or error
        what = f"cannot be shown, though it is named or was looked over: {reason}"
        raise UserError(what, code="data.changed_picture", where=place) from None
