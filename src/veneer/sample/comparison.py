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
from veneer.data.decode import Unreadable, decode
from veneer.data.manifest import Sample
from veneer.data.preflight import Dataset
from veneer.errors import UserError
from veneer.family.protocol import Family
from veneer.sample.gallery import PictureNote, sampler_name
from veneer.sample.generate import generate_quietly
from veneer.sample.sheet import sheet

__all__ = [
    "Comparison",
    "SamplePrompts",
    "SampleSettings",
    "compare_pictures",
    "comparison_sheet",
    "paint",
    "sample_prompts",
]

_COUNT = 8  # columns of a sheet
_CELL = 128  # side of a picture on it, in pixels
_ADAPTER = "adapter"


@dataclass(frozen=True)
class SamplePrompts:
    """Prompts that are painted to show an adapter.

    Attributes:
        prompts: one a column of the sheet.
        real: the real picture of each prompt; empty where the user named the prompts.
    """

    prompts: tuple[str, ...]
    real: tuple[Sample, ...] = ()


def sample_prompts(config: RunConfig, pictures: Dataset) -> SamplePrompts:
    """Return the config's prompts, else captions of pictures that are held out, else of those trained on."""
    if config.sample.prompts:
        return SamplePrompts(config.sample.prompts)
    samples = (pictures.held_out.samples or pictures.train.samples)[:_COUNT]
    return SamplePrompts(tuple(sample.captions[0] for sample in samples), samples)


@dataclass(frozen=True)
class SampleSettings:
    """How a run's pictures are painted.

    Attributes:
        seed: of the first picture; each one after it has the next.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
    """

    seed: int
    steps: int
    guidance: float

    @classmethod
    def of(cls, config: RunConfig) -> SampleSettings:
        """Return a run's settings."""
        return cls(config.seed, config.sample.steps, config.sample.guidance)

    def notes(self, prompts: Sequence[str], sampler: str) -> tuple[PictureNote, ...]:
        """Return how the picture of each prompt is painted."""
        seeds = enumerate(prompts, start=self.seed)
        return tuple(PictureNote(prompt, seed, self.steps, self.guidance, sampler) for seed, prompt in seeds)


def paint(family: Family, prompts: Sequence[str], settings: SampleSettings) -> list[Image.Image]:
    """Return one picture a prompt by the networks as they stand, each from a seed of its own."""
    seeds = [settings.seed + place for place in range(len(prompts))]
    return generate_quietly(family, prompts, seeds, steps=settings.steps, guidance=settings.guidance)


@dataclass(frozen=True)
class Comparison:
    """Pictures of the same prompts and seeds, as large as they were painted.

    Attributes:
        prompts: one a column.
        rows: the base's pictures, the adapter's, and the real ones where there are some, by name.
        notes: how each of the adapter's was painted.
    """

    prompts: tuple[str, ...]
    rows: Mapping[str, Sequence[Image.Image]]
    notes: tuple[PictureNote, ...]

    @property
    def adapter(self) -> Sequence[Image.Image]:
        """The adapter's pictures."""
        return self.rows[_ADAPTER]

    def sheet(self) -> Image.Image:
        """Return them on one page, a row a name."""
        return sheet(list(self.rows.values()), columns=self.prompts, labels=list(self.rows), cell=_CELL)

    @property
    def note(self) -> dict[str, Any]:
        """The note for the file of the sheet, by which it is taken apart again."""
        return {"cell": _CELL, "columns": list(self.prompts), "labels": list(self.rows)}


def compare_pictures(family: Family, weights: AdapterWeights, subjects: SamplePrompts, config: RunConfig) -> Comparison:
    """Paint each subject by the base and by the adapter; the real picture is beside them where there is one.

    The adapter is applied for the while; afterwards the family's networks have their own bits again.
    """
    settings = SampleSettings.of(config)
    rows = {"base": paint(family, subjects.prompts, settings)}
    with apply_adapter(family.networks, weights):
        rows[_ADAPTER] = paint(family, subjects.prompts, settings)
    if subjects.real:
        rows["real"] = [_open(sample, config.data.background) for sample in subjects.real]
    return Comparison(subjects.prompts, rows, settings.notes(subjects.prompts, sampler_name(family.pipeline())))


def comparison_sheet(
    family: Family, weights: AdapterWeights, subjects: SamplePrompts, config: RunConfig
) -> Image.Image:
    """Return a sheet with a column a subject: the base's picture, the adapter's, and the real one where there is one.

    The adapter is applied for the while; afterwards the family's networks have their own bits again.
    """
    return compare_pictures(family, weights, subjects, config).sheet()


def _open(sample: Sample, background: str) -> Image.Image:
    try:
        return decode(sample.path.read_bytes(), rgb(background))
    except (OSError, Unreadable) as error:
        what = f"has changed since the pictures were looked over: {error}"
        raise UserError(what, code="data.changed_picture", where=sample.path) from None
