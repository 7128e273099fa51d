"""Choose the size that each picture is cut to: its own aspect ratio at constant area, in steps of the base's multiple.

Of the sizes of about one area, a picture gets the one that crops the least of it (NovelAI 2022, aspect ratio
bucketing). No picture is enlarged: one that is smaller than its size gets one that fits in it. All is a pure function
of a picture's size, of the configuration, and of what the base says of its own sizes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veneer.config.data_config import DataConfig
from veneer.data.clip_frames import NO_CLIPS, BaseFrames, ClipFrames
from veneer.data.manifest import Sample
from veneer.errors import UserError

__all__ = [
    "MAX_ASPECT",
    "BaseSizes",
    "Buckets",
    "Extent",
    "Size",
    "SmallPictures",
    "cropped_share",
    "largest",
    "resolutions_of",
]

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""
Extent: TypeAlias = tuple[int, int, int]
"""Height and width in pixels, and frames, of which a picture has one."""
MAX_ASPECT = 4
"""Most that a long side is of its short side: what a picture is longer is cropped."""
_CODE = 2**31
_STEPS = 16
"""Steps that a resolution is divided into: 1024 pixels into steps of 64."""


class BaseSizes(BaseFrames, Protocol):
    """What a base says of the pictures and clips that it takes; ``veneer.family.protocol.Family`` is one.

    Attributes:
        resolution: side of the square that it was trained on, in pixels.
        multiple: sides of pictures must be multiples of this many pixels.
    """

    resolution: int
    multiple: int

    @property
    def longest_side(self) -> int | None:
        """Pixels that a side of a picture may have at most; None: any."""


@dataclass(frozen=True)
class Buckets:
    """The sizes that pictures are cut to.

    Attributes:
        resolutions: what the config asks for: the side of a square of a size's area, or an exact (height, width).
        multiple: that sides are multiples of.
        upscale: pictures that are smaller than their size are enlarged.
        longest: pixels of a side at most, where the resolution itself is no longer; None: any.
        clips: how many frames clips are seen with.
    """

    resolutions: tuple[int | Size, ...]
    multiple: int
    upscale: bool = False
    longest: int | None = None
    clips: ClipFrames = NO_CLIPS

    @classmethod
    def of(cls, config: DataConfig, base: BaseSizes) -> Buckets:
        """Return the buckets of a config on a base.

        Raises:
            UserError: a side or a number of frames is not one of the base's.
        """
        resolutions = resolutions_of(config, base.resolution)
        _check_multiples(resolutions, base.multiple)
        return cls(resolutions, base.multiple, config.upscale, base.longest_side, ClipFrames.of(config, base))

    def sizes(self, width: int, height: int) -> tuple[Size, ...]:
        """Return the sizes (height, width) that a picture is cut to: one for each resolution, equal ones once.

        Args:
            width: of the picture in pixels, upright.
            height: likewise.
        """
        found = [
            self._size(width, height, wanted, shapes)
            for wanted, shapes in zip(self.resolutions, self._shapes, strict=True)
        ]
        return tuple(dict.fromkeys(found))

    def group(self, widths_N: NDArray[np.int64], heights_N: NDArray[np.int64]) -> dict[Size, NDArray[np.intp]]:
        """Return the indices of the pictures of each size, rising, by size, rising: as :meth:`sizes` has them, quickly.

        Args:
            widths_N: of pictures in pixels, upright.
            heights_N: likewise.
        """
        codes_RN = np.array(
            [
                self._codes(widths_N, heights_N, wanted, shapes)
                for wanted, shapes in zip(self.resolutions, self._shapes, strict=True)
            ]
        )
        for place in range(1, len(codes_RN)):
            codes_RN[place][(codes_RN[:place] == codes_RN[place]).any(axis=0)] = -1
        codes, index = codes_RN.T.ravel(), np.repeat(np.arange(len(widths_N)), len(codes_RN))
        index, codes = index[codes >= 0], codes[codes >= 0]
        order = np.argsort(codes, kind="stable")
        found, starts = np.unique(codes[order], return_index=True)
        parts = np.split(index[order], starts[1:])
        return {(code // _CODE, code % _CODE): part for code, part in zip(found.tolist(), parts, strict=False)}

    def group_clips(
        self, widths_N: NDArray[np.int64], heights_N: NDArray[np.int64], frames_N: NDArray[np.int64]
    ) -> dict[Extent, NDArray[np.intp]]:
        """Return the indices of the pictures and clips of each size and number of frames, rising, by these, rising.

        Args:
            widths_N: of pictures in pixels, upright.
            heights_N: likewise.
            frames_N: how many of each are seen, as ``clips`` has them.
        """
        return {
            (*size, count): own[frames_N[own] == count]
            for size, own in self.group(widths_N, heights_N).items()
            for count in np.unique(frames_N[own]).tolist()
        }

    def _codes(
        self, widths_N: NDArray[np.int64], heights_N: NDArray[np.int64], wanted: int | Size, shapes: _Shapes
    ) -> NDArray[np.int64]:
        """Return for each picture height x ``_CODE`` + width of its size at one resolution."""
        tall_N, wide_N = shapes.nearest_of(widths_N, heights_N)
        if not isinstance(wanted, tuple) and not self.upscale:
            longest = self._longest(wanted)
            for index in np.nonzero((tall_N > heights_N) | (wide_N > widths_N))[0]:
                shape = int(widths_N[index]), int(heights_N[index])
                tall_N[index], wide_N[index] = _fitting(*shape, wanted, self.multiple, longest)
        codes_N: NDArray[np.int64] = tall_N * _CODE + wide_N
        return codes_N

    def largest(self, width: int, height: int) -> Size:
        """Return the largest of a picture's sizes, at which it is measured."""
        return largest(self.sizes(width, height))

    @property
    def most(self) -> Size:
        """The largest size that any picture may get."""
        return largest((side, side) if isinstance(side, int) else side for side in self.resolutions)

    @cached_property
    def _shapes(self) -> tuple[_Shapes, ...]:
        return tuple(_Shapes.of(wanted, self.multiple, self._longest(wanted)) for wanted in self.resolutions)

    def _longest(self, wanted: int | Size) -> int:
        """Return how long a side of a resolution may be."""
        own = max(wanted) if isinstance(wanted, tuple) else MAX_ASPECT * wanted
        return own if self.longest is None else min(own, self.longest)

    def _size(self, width: int, height: int, wanted: int | Size, shapes: _Shapes) -> Size:
        size = shapes.nearest(width, height)
        if isinstance(wanted, tuple) or self.upscale or (size[0] <= height and size[1] <= width):
            return size
        return _fitting(width, height, wanted, self.multiple, self._longest(wanted))


def resolutions_of(config: DataConfig, default: int) -> tuple[int | Size, ...]:
    """Return the resolutions that a config asks for: sides of squares of an area, or exact sizes (height, width).

    Args:
        config: of the pictures.
        default: the base's own resolution, where the config names none.
    """
    asked = default if config.resolution is None else config.resolution
    several = asked if isinstance(asked, tuple) else (asked,)
    sizes = [_parsed(one) if isinstance(one, str) else one for one in several]
    return tuple((one, one) if config.aspect == "square" and isinstance(one, int) else one for one in sizes)


@dataclass(frozen=True)
class SmallPictures:
    """The pictures that are smaller than what they are asked to be.

    Attributes:
        size: the largest resolution asked for, as text.
        enlarged: whether they are enlarged to it; else they are trained at their own size.
        samples: the pictures.
    """

    size: str
    enlarged: bool
    samples: tuple[Sample, ...]

    @classmethod
    def among(cls, samples: Iterable[Sample], config: DataConfig, default: int | None = None) -> SmallPictures:
        """Find them.

        Args:
            samples: the pictures.
            config: what they are asked to be.
            default: the base's own resolution; None: it is not known, so none is small where the config names none.
        """
        wanted = max(resolutions_of(config, default or 0), key=_area)
        if isinstance(wanted, tuple):
            small = [one for one in samples if one.height < wanted[0] or one.width < wanted[1]]
            size = f"{wanted[1]} x {wanted[0]}"
        else:
            small = [one for one in samples if one.width * one.height < wanted * wanted]
            size = f"{wanted} x {wanted}"
        return cls(size, isinstance(wanted, tuple) or config.upscale, tuple(small))


def cropped_share(width: int, height: int, size: Size) -> float:
    """Return the share of a picture's area that is cropped away where it is cut to a size (height, width)."""
    down, across = height * size[1], width * size[0]
    return 1 - min(down, across) / max(down, across)


def largest(sizes: Iterable[Size]) -> Size:
    """Return the size of the largest area; of equal areas the tallest."""
    return max(sizes, key=lambda size: (size[0] * size[1], size))


def _area(wanted: int | Size) -> int:
    return wanted * wanted if isinstance(wanted, int) else wanted[0] * wanted[1]


@dataclass(frozen=True)
class _Shapes:
    """Sizes of about one area, by aspect ratio, rising; of one aspect ratio the largest only."""

    aspects: tuple[float, ...]
    sizes: tuple[Size, ...]

    @classmethod
    def of(cls, wanted: int | Size, multiple: int, longest: int) -> _Shapes:
        sizes = {wanted} if isinstance(wanted, tuple) else _sizes_of_area(wanted, multiple, longest)
        by_aspect: dict[float, Size] = {}
        for size in sorted(sizes):
            by_aspect[size[1] / size[0]] = size
        ordered = sorted(by_aspect.items())
        return cls(tuple(aspect for aspect, _ in ordered), tuple(size for _, size in ordered))

    def nearest(self, width: int, height: int) -> Size:
        """Return the size that crops the least share of a picture; of two alike the larger one."""
        place = bisect_left(self.aspects, width / height)
        around = self.sizes[max(0, place - 1) : place + 1]
        return min(around, key=lambda size: (cropped_share(width, height, size), -size[0] * size[1]))

    def nearest_of(
        self, widths_N: NDArray[np.int64], heights_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return heights and widths of what :meth:`nearest` returns for each picture."""
        places_N = np.searchsorted(self.aspects, widths_N / heights_N)
        around_2N = np.clip(np.array([places_N - 1, places_N]), 0, len(self.sizes) - 1)
        tall_2N, wide_2N = np.array(self.sizes, dtype=np.int64).T[:, around_2N]
        down_2N, across_2N = heights_N * wide_2N, widths_N * tall_2N
        lost_2N = 1 - np.minimum(down_2N, across_2N) / np.maximum(down_2N, across_2N)
        area_2N = tall_2N * wide_2N
        takes_second = (lost_2N[1] < lost_2N[0]) | ((lost_2N[1] == lost_2N[0]) & (area_2N[1] > area_2N[0]))
        return np.where(takes_second, tall_2N[1], tall_2N[0]), np.where(takes_second, wide_2N[1], wide_2N[0])


def _sizes_of_area(side: int, multiple: int, longest: int) -> set[Size]:
    """Return the sizes of at most the area of a square, in steps, each as large as the area lets it be."""
    step = _step(side, multiple)
    sizes = {(side, side)}
    for one in range(step, longest + 1, step):
        other = side * side // one // step * step
        if other <= longest and max(one, other) <= MAX_ASPECT * min(one, other):
            sizes |= {(one, other), (other, one)}
    return sizes


def _step(side: int, multiple: int) -> int:
    return max(1, round(side / _STEPS / multiple)) * multiple


def _fitting(width: int, height: int, side: int, multiple: int, longest: int) -> Size:
    """Return a size that fits in a picture, or one multiple where the picture is smaller than that.

    Its steps are a sixteenth of the picture's short side, so that small pictures of like sizes share a batch.
    """
    short, long = min(width, height), max(width, height)
    step = _step(min(short, side), multiple)
    across = max(step, min(short, side) // step * step)
    if across > short:
        step = across = multiple
    ideal = across * long / short  # of which nothing is cropped
    room = long if across <= short else round(ideal)  # one that is enlarged keeps its shape
    most = max(step, min(room, longest, MAX_ASPECT * across, side * side // across) // step * step)
    options = {min(most, max(step, int(ideal // step) * step + more)) for more in (0, step)}
    along = min(options, key=lambda one: (cropped_share(long, short, (across, one)), -one))
    return (across, along) if width >= height else (along, across)


def _parsed(text: str) -> Size:
    """Return the (height, width) of ``832x1216``, which is width by height."""
    width, height = map(int, text.split("x"))
    return height, width


def _check_multiples(resolutions: Iterable[int | Size], multiple: int) -> None:
    for wanted in resolutions:
        sides = wanted if isinstance(wanted, tuple) else (wanted,)
        if wrong := next((side for side in sides if side % multiple), None):
            near = max(1, round(wrong / multiple)) * multiple
            what = f"{wrong} is not a multiple of {multiple}, which the base needs"
            raise UserError(what, code="data.unfit_resolution", where="data.resolution", remedy=f"use {near}")
