"""Choose which frames of a clip are seen: at which rate, how many, and from where on.

Source: the counts and the words are those of musubi-tuner's ``target_frames`` and ``frame_extraction``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veneer.config.data_config import DataConfig
from veneer.data.manifest import Sample
from veneer.errors import UserError
from veneer.rng import uniform

__all__ = ["NO_CLIPS", "BaseFrames", "ClipFrames", "FrameExtraction", "FrameSpan", "Moving", "draws_begin_anywhere"]

FrameExtraction: TypeAlias = Literal["chunk", "random", "head"]
_SAME_RATE = 0.01
"""Share by which two rates may differ and be taken as one: 23.976 frames a second are 24, without a frame shown twice
now and then."""


class BaseFrames(Protocol):
    """What a base says of the clips that it takes; ``veneer.family.protocol.Family`` is one.

    Attributes:
        frame_stride: a clip has one frame more than a multiple of this many; None: the base takes pictures only.
        frame_rate: frames a second of the clips that it was trained on; None: likewise.
    """

    frame_stride: int | None
    frame_rate: float | None


class Moving(Protocol):
    """A picture or a clip as far as its frames go; ``veneer.data.manifest.Sample`` is one."""

    @property
    def frames(self) -> int:
        """Frames of the file; 1 of a picture."""

    @property
    def frame_rate(self) -> float | None:
        """Frames a second, on the mean; None: it is a picture."""


@dataclass(frozen=True, slots=True)
class FrameSpan:
    """The frames of a clip that are seen.

    Attributes:
        count: how many.
        start: number of the first one, at the rate.
        rate: frames a second at which the clip is seen.
        varies: whether draws of the clip begin anywhere, so that hardly any two see the same.
    """

    count: int
    start: int
    rate: float
    varies: bool = False

    def times(self, own_rate: float) -> list[float]:
        """Return the times of the frames in seconds from the clip's first frame, rising.

        Args:
            own_rate: frames a second of the clip.
        """
        rate = self.rate_of(own_rate)
        return [(self.start + place) / rate for place in range(self.count)]

    def rate_of(self, own_rate: float) -> float:
        """Return the frames a second that are taken of a clip: its own where that is about the rate."""
        return own_rate if _is_same(own_rate, self.rate) else self.rate


@dataclass(frozen=True)
class ClipFrames:
    """The numbers of frames that clips are seen with.

    Attributes:
        counts: what the config asks for, rising; none: clips are not seen.
        stride: what the base needs: a clip has one frame more than a multiple of it.
        rate: frames a second at which clips are seen; None: each clip's own.
        extraction: which part of a longer clip a draw has.
    """

    counts: tuple[int, ...] = ()
    stride: int = 1
    rate: float | None = None
    extraction: FrameExtraction = "chunk"

    @classmethod
    def of(cls, config: DataConfig, base: BaseFrames) -> ClipFrames:
        """Return those of a config on a base.

        Raises:
            UserError: the base takes pictures only, or not so many frames.
        """
        counts = tuple(sorted(config.frames or ()))
        if base.frame_stride is None:
            _refuse_clips(counts)
        stride = base.frame_stride or 1
        _check_counts(counts, stride)
        return cls(counts, stride, config.frame_rate or base.frame_rate, config.frame_extraction)

    def count(self, clip: Moving) -> int:
        """Return how many frames of a clip are seen: the most of ``counts`` that it has; 1 of a picture.

        One that is shorter than all of them has a count of its own, the most of the base's that it has: no frame is
        shown twice to fill a clip up, and none is left out for being short.
        """
        if clip.frame_rate is None:
            return 1
        available = self.available(clip)
        fitting = [count for count in self.counts if count <= available]
        return max(fitting, default=(available - 1) // self.stride * self.stride + 1)

    def counts_of(self, clips: Iterable[Moving]) -> NDArray[np.int64]:
        """Return the count of each of N clips or pictures, (N,)."""
        return np.fromiter(map(self.count, clips), dtype=np.int64)

    def available(self, clip: Moving) -> int:
        """Return how many frames a clip has at the rate, from its first frame to its last one."""
        own = clip.frame_rate
        if own is None or self.rate is None or _is_same(own, self.rate):
            return clip.frames
        return int((clip.frames - 1) * self.rate / own + 1e-6) + 1

    def is_short(self, clip: Moving) -> bool:
        """Check whether a clip has fewer frames than each of ``counts``."""
        return clip.frame_rate is not None and self.available(clip) < min(self.counts, default=1)

    def repeats_frames(self, clip: Moving) -> bool:
        """Check whether a clip has fewer frames a second than the rate, so that some are seen more than once."""
        own, rate = clip.frame_rate, self.rate
        return own is not None and rate is not None and own < rate and not _is_same(own, rate) and self.count(clip) > 1

    def span(self, clip: Sample, seed: int, draw_index: int) -> FrameSpan | None:
        """Return the frames of a clip that one draw sees, a pure function of (seed, draw, clip); None: a picture."""
        count, spare = self.count(clip), 0 if clip.frame_rate is None else self.available(clip) - self.count(clip)
        varies = self.extraction == "random" and spare > 0
        if self.extraction == "head" or not spare:
            return self._span(clip, count, 0, varies)
        places = spare + 1 if varies else (spare + count) // count
        place = min(int(uniform(seed, draw_index, clip.id, "clip start") * places), places - 1)
        return self._span(clip, count, place if varies else _chunk(spare + count, count, place), varies)

    def centered(self, clip: Moving) -> FrameSpan | None:
        """Return the frames in the middle of a clip, which it is measured on; None: a picture."""
        count = self.count(clip)
        start = 0 if clip.frame_rate is None or self.extraction == "head" else (self.available(clip) - count) // 2
        return self._span(clip, count, start)

    def starts(self, clip: Moving) -> int | None:
        """Return how many spans of a clip there are; None: each draw begins anywhere."""
        spare = 0 if clip.frame_rate is None else self.available(clip) - self.count(clip)
        if self.extraction == "head" or not spare:
            return 1
        return None if self.extraction == "random" else (spare + self.count(clip)) // self.count(clip)

    def _span(self, clip: Moving, count: int, start: int, varies: bool = False) -> FrameSpan | None:
        if clip.frame_rate is None:
            return None
        return FrameSpan(count, start, self.rate or clip.frame_rate, varies)


NO_CLIPS = ClipFrames()
"""Of pictures alone."""


def draws_begin_anywhere(config: DataConfig) -> bool:
    """Check whether draws of clips begin anywhere in them, so that their latents are encoded in every step."""
    return config.frames is not None and config.frame_extraction == "random"


def _chunk(available: int, count: int, place: int) -> int:
    """Return the first frame of one of the chunks of a clip, each in the middle of one of as many equal parts."""
    chunks = available // count
    return ((2 * place + 1) * available - chunks * count) // (2 * chunks)


def _is_same(own_rate: float, rate: float) -> bool:
    return abs(own_rate - rate) <= _SAME_RATE * rate


def _refuse_clips(counts: tuple[int, ...]) -> None:
    if max(counts, default=1) > 1:
        what = f"is {max(counts)}, and this base takes pictures only"
        remedy = "use 1, which takes one frame of each clip, or leave it out"
        raise UserError(what, code="data.frames_for_pictures", where="data.frames", remedy=remedy)


def _check_counts(counts: tuple[int, ...], stride: int) -> None:
    wrong = next((count for count in counts if (count - 1) % stride), None)
    if wrong is not None:
        near = round((wrong - 1) / stride) * stride + 1
        what = f"{wrong} is not one more than a multiple of {stride}, which the base needs"
        raise UserError(what, code="data.unfit_frames", where="data.frames", remedy=f"use {near}")
