"""Choose the pictures of each micro-batch by pure functions of the seed and the step.

A micro-batch holds pictures of one size, and clips of one number of frames. Each such size is a bucket with an endless
stream of its pictures: epoch after epoch, each in an order of its own, so that no micro-batch is short and none of the
pictures is left out. The buckets take turns in proportion to how many pictures they show, each turn at a random place
within its own stretch of the run. So a run that was stopped goes on where it was, and each picture has its exact share
of the training.

The pictures that a run draws are numbered from 0: draw n is in micro-batch n // batch_size. Where all pictures have one
size, a step sees the same pictures however they are split into batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from veneer.config.schema import RunConfig
from veneer.data.bucket_turns import BucketTurns
from veneer.data.buckets import Buckets, Extent, Size
from veneer.data.clip_frames import FrameSpan
from veneer.data.manifest import Manifest, Sample
from veneer.data.shuffle_window import DEFAULT_WINDOW, with_windows
from veneer.rng import keys, uniforms

__all__ = ["DrawSchedule", "SampleDraw"]


@dataclass(frozen=True)
class SampleDraw:
    """One draw of a sample.

    Attributes:
        sample: which one.
        draw_index: the draw's number among all of the run, from 0.
        size: height and width that it is cut to.
        span: the frames of a clip that are seen; None: it is a picture.
    """

    sample: Sample
    draw_index: int
    size: Size
    span: FrameSpan | None = None

    @property
    def extent(self) -> Extent:
        """Height and width that it is cut to, and its number of frames."""
        return *self.size, 1 if self.span is None else self.span.count


class DrawSchedule:
    """Which pictures each micro-batch of a run holds.

    Args:
        manifest: what is drawn from.
        buckets: the sizes that its pictures are cut to.
        seed: of the run.
        batch_size: pictures of a micro-batch.
        window: how many pictures of shards that lie elsewhere are shuffled among themselves.

    Attributes:
        samples: what is drawn from.
        members: the pictures of each height, width and number of frames, by these, rising.
        has_masks: whether any of them has a mask.
    """

    def __init__(
        self, manifest: Manifest, buckets: Buckets, seed: int, batch_size: int, window: int = DEFAULT_WINDOW
    ) -> None:
        self.samples, self.has_masks = manifest.samples, bool(manifest.masks)
        self._batch_size, self._seed, self._clips = batch_size, seed, buckets.clips
        shapes_2N = (
            np.array([(sample.width, sample.height) for sample in self.samples], dtype=np.int64).reshape(-1, 2).T
        )
        groups = buckets.group_clips(shapes_2N[0], shapes_2N[1], buckets.clips.counts_of(self.samples))
        self.members = {extent: tuple(self.samples[index] for index in own.tolist()) for extent, own in groups.items()}
        self._streams = [PictureStream(samples, seed, window) for samples in self.members.values()]
        names = [f"{height}x{width}" + (f"x{frames}" if frames > 1 else "") for height, width, frames in self.members]
        self._turns = BucketTurns(names, [stream.rate for stream in self._streams], seed)

    @classmethod
    def of(cls, manifest: Manifest, buckets: Buckets, config: RunConfig) -> DrawSchedule:
        """Return that of a run's pictures."""
        window = config.data.shuffle_window or DEFAULT_WINDOW
        return cls(manifest, buckets, config.seed, config.train.batch_size, window)

    def parts(self, sample: Sample) -> int:
        """Return how many parts of a clip are kept encoded; 1 of a picture."""
        return self._clips.starts(sample) or 1

    def micro_batch(self, number: int) -> list[SampleDraw]:
        """Return the draws of one micro-batch, counted over the run from 0; there is at least one sample."""
        bucket, turn = self._turns.turn(number)
        count, (height, width, _) = self._batch_size, tuple(self.members)[bucket]
        drawn = enumerate(self._streams[bucket].draw(turn * count, count), start=number * count)
        return [
            SampleDraw(sample, index, (height, width), self._clips.span(sample, self._seed, index))
            for index, sample in drawn
        ]


class PictureStream:
    """An endless stream of pictures: in each epoch each as often as it repeats, in an order of the epoch's own.

    A picture of a weight that is not whole is shown floor((e + 1) r + u) - floor(e r + u) times in epoch e, where r is
    its rate and u in [0, 1) is keyed by its id: r times an epoch on the mean, and never off by a whole showing.

    Args:
        samples: the pictures, at least one.
        seed: of the run.
        window: as of :class:`DrawSchedule`.

    Attributes:
        rate: pictures of an epoch on the mean.
    """

    def __init__(self, samples: Sequence[Sample], seed: int, window: int = DEFAULT_WINDOW) -> None:
        self._samples, self._seed, self._window = samples, seed, window
        self._rates_N = np.array([sample.rate for sample in samples], dtype=np.float64)
        self._is_whole = bool((self._rates_N == np.floor(self._rates_N)).all())
        self.rate = float(self._rates_N.sum())
        self._orders: dict[int, NDArray[np.intp]] = {}
        self._shown: dict[int, int] = {}

    def draw(self, start: int, count: int) -> list[Sample]:
        """Return ``count`` pictures of the stream from place ``start`` on."""
        epoch = self._epoch_of(start)
        place, drawn = start - self._shown_before(epoch), list[Sample]()
        while len(drawn) < count:
            order = self._order(epoch)[place : place + count - len(drawn)]
            drawn += [self._samples[index] for index in order]
            epoch, place = epoch + 1, 0
        return drawn

    def _epoch_of(self, place: int) -> int:
        """Return the epoch that a place of the stream is in."""
        if self._is_whole:
            return place // int(self.rate)
        low, high = 0, 1
        while self._shown_before(high) <= place:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._shown_before(middle) <= place else (low, middle)
        return low

    def _shown_before(self, epoch: int) -> int:
        """Return how many pictures all epochs before this one show."""
        if self._is_whole:
            return epoch * int(self.rate)
        if epoch not in self._shown:  # a sum over all pictures, which no draw shall repeat
            self._shown[epoch] = int(self._times_before(epoch).sum())
        return self._shown[epoch]

    def _times_before(self, epoch: int) -> NDArray[np.int64]:
        """Return how often each picture (N,) is shown in all epochs before this one."""
        return np.floor(epoch * self._rates_N + self._phases_N).astype(np.int64)

    @cached_property
    def _phases_N(self) -> NDArray[np.float64]:
        phases = uniforms((self._seed,), [sample.id for sample in self._samples], "weight")
        # whole rates need none, and stay clear of rounding
        return np.where(self._rates_N == np.floor(self._rates_N), 0.0, phases)

    def _order(self, epoch: int) -> NDArray[np.intp]:
        """Return the indices of an epoch's pictures, repeats and all, in an order keyed by their contents.

        So names and paths do not change it.
        """
        if epoch not in self._orders:
            if len(self._orders) > 1:
                self._orders.clear()
            self._orders[epoch] = self._compute_order(epoch)
        return self._orders[epoch]

    def _compute_order(self, epoch: int) -> NDArray[np.intp]:
        times_N = self._times_before(epoch + 1) - self._times_before(epoch)
        repeated = np.repeat(np.arange(len(times_N)), times_N)
        starts = np.cumsum(times_N) - times_N
        keys_E = np.empty(len(repeated), np.int64)
        for turn in range(int(times_N.max(initial=0))):
            again = np.flatnonzero(times_N > turn)
            ids = [self._samples[index].id for index in again.tolist()]
            keys_E[starts[again] + turn] = keys((self._seed, epoch), ids, turn, "order")
        order = repeated[np.argsort(keys_E, kind="stable")]
        return with_windows(order, self._samples, self._seed, epoch, self._window)
