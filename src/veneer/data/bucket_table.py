"""Tabulate the buckets of a set of pictures: how many each has, its share of the training, and what is cropped away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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
    def frames(self) -> int:
        """Frames of a clip; 1 of a picture."""

    @property
    def frame_rate(self) -> float | None:
        """Frames a second of a clip; None: it is a picture."""

    @property
    def rate(self) -> float:
        """How often an epoch shows it at each of its sizes."""


@dataclass(frozen=True)
class BucketRow:
    """The pictures of one size, or the clips of one size and number of frames.

    Attributes:
        width: of the size, in pixels.
        height: of the size, in pixels.
        pictures: their number.
        share: of all that training shows.
        cropped: share of a picture's area that is cropped away, on the mean.
        most_cropped: the same of the picture that loses most.
        frames: that are seen of each; 1 of a picture.
    """

    width: int
    height: int
    pictures: int
    share: float
    cropped: float
    most_cropped: float
    frames: int = 1

    @property
    def name(self) -> str:
        """The size for people, with the frames of clips."""
        return f"{self.width} x {self.height}" + (f", {self.frames} frames" if self.frames > 1 else "")


@dataclass(frozen=True)
class PictureShare:
    """One picture's part of a training.

    Attributes:
        picture: its path.
        share: of all that training shows.
        sizes: that it is shown at, as ``832x1216``, of a clip with its frames, as ``832x480x17``.
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
    def of(cls, pictures: Sequence[ShapedPicture], buckets: Buckets) -> BucketTable | None:
        """Return the table of pictures that are trained on; None where there are none."""
        if not pictures:
            return None
        widths_N, heights_N = (np.array([getattr(one, side) for one in pictures]) for side in ("width", "height"))
        rates_N = np.array([one.rate for one in pictures])
        groups = buckets.group_clips(widths_N, heights_N, buckets.clips.counts_of(pictures))
        sizes_N = np.bincount(np.concatenate(list(groups.values())), minlength=len(pictures))
        shares_N = rates_N * sizes_N / (rates_N * sizes_N).sum()
        lost = {extent: _lost(widths_N[own], heights_N[own], extent[:2]) for extent, own in groups.items()}
        rows = [
            BucketRow(
                width=extent[1],
                height=extent[0],
                pictures=len(own),
                share=float((shares_N[own] / sizes_N[own]).sum()),
                cropped=float(lost[extent].mean()),
                most_cropped=float(lost[extent].max()),
                frames=extent[2],
            )
            for extent, own in groups.items()
        ]
        rows.sort(key=lambda row: (-row.share, row.width, row.height, row.frames))
        all_lost = np.concatenate(list(lost.values()))
        extremes = int(shares_N.argmin()), int(shares_N.argmax())
        listed = extremes if len(pictures) > _MOST_LISTED else range(len(pictures))
        shares = tuple(_share_of(pictures[index], float(shares_N[index]), buckets) for index in listed)
        return cls(tuple(rows), float(all_lost.mean()), float(all_lost.max()), shares)

    @property
    def extremes(self) -> tuple[PictureShare, PictureShare]:
        """The pictures of the least and of the greatest share."""
        return min(self.pictures, key=_share), max(self.pictures, key=_share)


def _lost(widths_N: NDArray[np.int64], heights_N: NDArray[np.int64], size: Size) -> NDArray[np.float64]:
    """Return what :func:`cropped_share` returns for each picture."""
    down_N, across_N = heights_N * size[1], widths_N * size[0]
    lost_N: NDArray[np.float64] = 1 - np.minimum(down_N, across_N) / np.maximum(down_N, across_N)
    return lost_N


def _share_of(picture: ShapedPicture, share: float, buckets: Buckets) -> PictureShare:
    sizes = buckets.sizes(picture.width, picture.height)
    frames = buckets.clips.count(picture)
    named = tuple(f"{width}x{height}" + (f"x{frames}" if frames > 1 else "") for height, width in sizes)
    lost = max(cropped_share(picture.width, picture.height, size) for size in sizes)
    return PictureShare(str(picture.path), share, named, lost)


def _share(picture: PictureShare) -> float:
    return picture.share
