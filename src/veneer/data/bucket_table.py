"""Tabulate the buckets of a set of pictures: how many each has, its share of the training, and what is cropped away."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from veneer.data.buckets import Buckets, Size, cropped_share

__all__ = ["BucketRow", "BucketTable", "PictureShare", "ShapedPicture"]

_MOST_LISTED = 10_000
"""Pictures whose shares are listed one by one; of more, the least and the greatest."""


class ShapedPicture(Protocol):
    """A picture as far as its buckets go; ``veneer.data.manifest.Sample`` is one."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def width(self) -> int:
        """In pixels, upright."""

    @property
    def height(self) -> int:
        """In pixels, upright."""

    @property
    def rate(self) -> float:
        """How often an epoch shows it at each of its sizes."""


@dataclass(frozen=True)
class BucketRow:
    """The pictures of one size.

    Attributes:
        width: of the size, in pixels.
        height: of the size, in pixels.
        pictures: their number.
        share: of all that training shows.
        cropped: share of a picture's area that is cropped away, on the mean.
        most_cropped: the same of the picture that loses most.
    """

    width: int
    height: int
    pictures: int
    share: float
    cropped: float
    most_cropped: float


@dataclass(frozen=True)
class PictureShare:
    """One picture's part of a training.

    Attributes:
        picture: its path.
        share: of all that training shows.
        sizes: that it is shown at, as ``832x1216``.
        cropped: share of its area that is cropped away, at the size that loses most.
    """

    picture: str
    share: float
    sizes: tuple[str, ...]
    cropped: float


@dataclass(frozen=True)
class BucketTable:
    """The buckets of a set of pictures.

    Attributes:
        rows: a row for each size, the greatest share first.
        cropped: share of a picture's area that is cropped away, on the mean over all pictures at all their sizes.
        most_cropped: the same of the picture that loses most.
        pictures: what each picture gets, in their order; of very many the least and the greatest share only.
    """

    rows: tuple[BucketRow, ...]
    cropped: float
    most_cropped: float
    pictures: tuple[PictureShare, ...]

    @classmethod
    def of(cls, pictures: Iterable[ShapedPicture], buckets: Buckets) -> BucketTable | None:
        """Return the table of pictures that are trained on; None where there are none."""
        placed = [(one, buckets.sizes(one.width, one.height)) for one in pictures]
        total = sum(one.rate * len(sizes) for one, sizes in placed)
        if not total:
            return None
        members: dict[Size, list[ShapedPicture]] = {}
        for one, sizes in placed:
            for size in sizes:
                members.setdefault(size, []).append(one)
        rows = sorted(
            (_row(size, of_size, total) for size, of_size in members.items()),
            key=lambda row: (-row.share, row.width, row.height),
        )
        lost = sum(row.cropped * row.pictures for row in rows) / sum(row.pictures for row in rows)
        return cls(tuple(rows), lost, max(row.most_cropped for row in rows), _shares(placed, total))

    @property
    def extremes(self) -> tuple[PictureShare, PictureShare]:
        """The pictures of the least and of the greatest share."""
        return min(self.pictures, key=_share), max(self.pictures, key=_share)


def _row(size: Size, pictures: list[ShapedPicture], total: float) -> BucketRow:
    lost = [cropped_share(one.width, one.height, size) for one in pictures]
    share = sum(one.rate for one in pictures) / total
    return BucketRow(size[1], size[0], len(pictures), share, sum(lost) / len(lost), max(lost))


def _shares(placed: list[tuple[ShapedPicture, tuple[Size, ...]]], total: float) -> tuple[PictureShare, ...]:
    if len(placed) > _MOST_LISTED:
        shown = [pick(placed, key=lambda pair: pair[0].rate * len(pair[1])) for pick in (min, max)]
    else:
        shown = placed
    return tuple(_share_of(one, sizes, total) for one, sizes in shown)


def _share_of(picture: ShapedPicture, sizes: tuple[Size, ...], total: float) -> PictureShare:
    named = tuple(f"{width}x{height}" for height, width in sizes)
    lost = max(cropped_share(picture.width, picture.height, size) for size in sizes)
    return PictureShare(str(picture.path), picture.rate * len(sizes) / total, named, lost)


def _share(picture: PictureShare) -> float:
    return picture.share
