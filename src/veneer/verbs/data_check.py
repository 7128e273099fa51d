"""Look the pictures of a run over as its training would, without training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from veneer.config.schema import RunConfig
from veneer.data.bucket_table import BucketTable
from veneer.data.buckets import Buckets, Size, cropped_share
from veneer.data.inspection import Advance, no_progress
from veneer.data.manifest import Sample
from veneer.data.preflight import Dataset, look_over
from veneer.data.seen import Look
from veneer.errors import UserError
from veneer.family.loading import load_run_base
from veneer.family.protocol import Family
from veneer.family.unread import Unread
from veneer.run.preparation import check_base, check_validation, input_warnings
from veneer.serialise import to_data
from veneer.train.events import Warned

__all__ = ["FINDINGS", "CheckedPicture", "DataCheck", "check_data", "check_pictures"]

MUCH_CROPPED = 0.1
"""Share of a picture's area from which on its loss is worth a word; buckets alone crop some percent."""


@dataclass(frozen=True)
class CheckedPicture:
    """A picture that can be used.

    Attributes:
        sample: the picture.
        held_out: whether it is kept from training.
        look: what was seen of it.
        sizes: that it is cut to, the largest first; none where the base is not known.
        frames: that are seen of a clip; 1 of a picture.
    """

    sample: Sample
    held_out: bool
    look: Look
    sizes: tuple[Size, ...] = ()
    frames: int = 1

    @property
    def cropped(self) -> float:
        """Share of its area that is cropped away, at the size that loses most."""
        return max((cropped_share(self.sample.width, self.sample.height, size) for size in self.sizes), default=0.0)

    @property
    def is_enlarged(self) -> bool:
        """Whether it is smaller than a size that it is cut to."""
        return any(size[0] > self.sample.height or size[1] > self.sample.width for size in self.sizes)

    @cached_property
    def findings(self) -> tuple[str, ...]:
        """What is to be said of it, each a key of :data:`FINDINGS` or the name of a conversion."""
        found = {
            "flat": self.look.is_flat,
            "blurred": self.look.is_blurred,
            "enlarged": self.is_enlarged,
            "much cropped": self.cropped >= MUCH_CROPPED,
        }
        return (*(name for name, is_so in found.items() if is_so), *self.look.conversions)


FINDINGS: Mapping[str, str] = {
    "flat": "of one colour, which teaches nothing else",
    "blurred": "blurred all over, which is learned, too",
    "enlarged": "smaller than the size that they are cut to, so enlarged and blurred",
    "much cropped": f"lose {MUCH_CROPPED:.0%} or more of their area to the crop",
}
"""What may be wrong with a picture that can be used, in words."""


@dataclass(frozen=True)
class DataCheck:
    """The pictures of a run, looked over.

    Attributes:
        config: of the run.
        refusal: why a training would not start; None: it would.
        dataset: the pictures; None where there is nothing to look at.
        buckets: the sizes that they are cut to; None where the base is not known.
        unread: what of each caption the base does not read, of those that it does not read whole.
        warnings: what a training would warn of because of the base.
    """

    config: RunConfig
    refusal: UserError | None = None
    dataset: Dataset | None = None
    buckets: Buckets | None = None
    unread: Mapping[str, Unread] = field(default_factory=dict)
    warnings: tuple[Warned, ...] = ()

    @cached_property
    def pictures(self) -> tuple[CheckedPicture, ...]:
        """The pictures that can be used, those to train on first."""
        return tuple(self._pictures())

    def _pictures(self) -> Iterator[CheckedPicture]:
        if self.dataset is None:
            return
        for held_out, manifest in ((False, self.dataset.train), (True, self.dataset.held_out)):
            for one in manifest.samples:
                sizes = () if self.buckets is None else self.buckets.sizes(one.width, one.height)
                ordered = tuple(sorted(sizes, key=lambda size: -size[0] * size[1]))
                frames = 1 if self.buckets is None else self.buckets.clips.count(one)
                yield CheckedPicture(one, held_out, self.dataset.looks[one.id], ordered, frames)

    @cached_property
    def findings(self) -> dict[str, list[CheckedPicture]]:
        """The pictures that something is to be said of, by what it is."""
        found: dict[str, list[CheckedPicture]] = {name: [] for name in FINDINGS}
        for one in self.pictures:
            for name in one.findings:
                found.setdefault(name, []).append(one)
        return {name: pictures for name, pictures in found.items() if pictures}

    @property
    def rejected(self) -> dict[str, str]:
        """Why each picture is put aside that is, by its path."""
        if self.dataset is None:
            return {}
        return {str(one.path): one.reason for one in (*self.dataset.train.rejected, *self.dataset.held_out.rejected)}

    @cached_property
    def bucket_table(self) -> BucketTable | None:
        """The buckets of the pictures that are trained on."""
        if self.dataset is None or self.buckets is None:
            return None
        return BucketTable.of(self.dataset.train.samples, self.buckets)


def check_pictures(config: RunConfig, progress: Advance = no_progress) -> DataCheck:
    """Look the pictures of a run over, and load its base to see what becomes of them and of their captions.

    Args:
        config: of the run.
        progress: is called with how many pictures are decoded, and how many there are.

    Raises:
        UserError: the base cannot be loaded.
    """
    try:
        dataset, refusal = look_over(config.data, progress)
    except UserError as error:
        return DataCheck(config, error)
    family = load_run_base(config)
    try:
        buckets = Buckets.of(config.data, family)
        check_validation(config, dataset)
        check_base(config, dataset, family)
    except UserError as error:
        return DataCheck(config, refusal or error, dataset)
    warnings = tuple(input_warnings(config, dataset, family))
    return DataCheck(config, refusal, dataset, buckets, _unread(dataset, family), warnings)


def _unread(dataset: Dataset, family: Family) -> Mapping[str, Unread]:
    samples = (*dataset.train.samples, *dataset.held_out.samples)
    captions = dict.fromkeys(caption for sample in samples for caption in sample.captions)
    return family.unread(list(captions))


def check_data(check: DataCheck) -> dict[str, Any]:
    """Return a check as plain data, with the verdict and a row for each picture."""
    dataset, refusal = check.dataset, check.refusal
    table = check.bucket_table
    return {
        "verdict": "ready" if refusal is None else "refused",
        "refusal": None if refusal is None else {"code": refusal.code, "text": str(refusal)},
        "base": str(check.config.base),
        "train": 0 if dataset is None else len(dataset.train.samples),
        "held_out": 0 if dataset is None else len(dataset.held_out.samples),
        "sources": [] if dataset is None else to_data(dataset.sources),
        "rejected": check.rejected,
        "copies": [] if dataset is None else to_data(dataset.copies),
        "near_duplicates": [] if dataset is None else to_data(dataset.near),
        "buckets": [] if table is None else to_data(table.rows),
        "unread": to_data(dict(check.unread)),
        "notes": [] if dataset is None else list(dataset.notes),
        "warnings": to_data(check.warnings),
        "pictures": [_picture_data(one) for one in check.pictures],
    }


def _picture_data(one: CheckedPicture) -> dict[str, Any]:
    return {
        "path": str(one.sample.path),
        "held_out": one.held_out,
        "width": one.sample.width,
        "height": one.sample.height,
        "frames": one.sample.frames,
        "frame_rate": one.sample.frame_rate,
        "frames_seen": one.frames,
        "sizes": [f"{width}x{height}" for height, width in one.sizes],
        "cropped": one.cropped,
        "captions": list(one.sample.captions),
        "edge_width": one.look.edge_width,
        "findings": list(one.findings),
    }
