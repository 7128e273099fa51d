"""Evidence about a training run, as the doctor's rules read it: plain numbers, no tensors and no files.

Evidence is written as JSON and read back, so that rules can be tried on runs that were made long ago.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BeforeValidator, TypeAdapter

from veneer.config.schema import RunConfig
from veneer.evaluate.interval import LEVEL, t_quantile

__all__ = [
    "CaptionStatistics",
    "CopyCheck",
    "CurveSegment",
    "Effect",
    "Ending",
    "Evidence",
    "Measurements",
    "MemoryEstimate",
    "PictureCounts",
    "ShuffledCaptions",
    "ValidationScore",
    "WeightChange",
    "read_evidence",
    "write_evidence",
]

_SCARCE_SHARE = 0.9

# a configuration reads plain values in its own way, whether they come from JSON or from YAML
_Config = Annotated[RunConfig, BeforeValidator(RunConfig.model_validate)]


@dataclass(frozen=True)
class Ending:
    """How a run ended, by its log.

    Attributes:
        how: ``cut off`` means that the log ends in the middle of training and no process works on the run, ``stopped
            early`` that early stopping ended it, ``unknown`` that there is no log.
        step: number of steps done.
        kind: class of the exception that ended it, e.g. ``OutOfMemoryError``; empty without one.
        text: message of that exception.
        code: kind of that exception, for programs, as of :class:`veneer.run.events.Failed`.
    """

    how: Literal["finished", "stopped early", "stopped", "failed", "cut off", "running", "unknown"]
    step: int
    kind: str = ""
    text: str = ""
    code: str = ""

    @property
    def first_line(self) -> str:
        """First line of the message."""
        return next(iter(self.text.strip().splitlines()), "")


@dataclass(frozen=True)
class CurveSegment:
    """Consecutive steps of the loss curve, summed up.

    Attributes:
        first: first step, counted from 1.
        last: last step.
        finite: number of its steps whose loss was finite.
        loss: mean of the finite losses; None without any.
        error: standard error of that mean; None for fewer than two.
        gradient: mean of the gradient norms before clipping; None if one is not finite.
    """

    first: int
    last: int
    finite: int
    loss: float | None
    error: float | None
    gradient: float | None


@dataclass(frozen=True)
class Effect:
    """Two denoising losses on the same pictures, noise and timesteps, and their paired difference.

    Attributes:
        mean: mean over pictures of the second loss less the first.
        low: lower end of the difference's 95 % interval; None if the interval is open.
        high: upper end; None likewise.
        before: the first loss.
        after: the second loss.
        pictures: number of pictures measured on.
    """

    mean: float
    low: float | None
    high: float | None
    before: float
    after: float
    pictures: int

    @property
    def share(self) -> float:
        """The difference as a share of the first loss."""
        return self.mean / self.before

    @property
    def is_lower(self) -> bool:
        """Whether the second loss is lower: the whole interval lies below 0."""
        return self.high is not None and self.high < 0

    @property
    def is_higher(self) -> bool:
        """Whether the second loss is higher: the whole interval lies above 0."""
        return self.low is not None and self.low > 0

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval; infinite if it is open, as it is for one picture.

        Two effects on different pictures differ beyond chance where they differ by more than the root of the sum of
        the squares of their half widths. Twice their standard errors would be too little: where one effect is of two or
        three pictures, chance exceeds that much more often than in 5 % of cases.
        """
        return math.inf if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, from the interval, which is Student's or wider: rather too large than too small.

        Infinite if the interval is open.
        """
        return (
            self.half_width if math.isinf(self.half_width) else self.half_width / t_quantile(self.pictures - 1, LEVEL)
        )


@dataclass(frozen=True)
class ValidationScore:
    """The adapter's effect on held-out pictures, measured while training after ``step`` steps."""

    step: int
    effect: Effect


@dataclass(frozen=True)
class PictureCounts:
    """Counts of a run's pictures, and the names of some.

    Attributes:
        train: number of training pictures; 0 if they were not counted.
        held_out: number of held-out pictures.
        rejected: reasons for which pictures were left out, by file; the first few.
        left_out: number of pictures that were left out.
        duplicates: number of pictures that are copies of another file, byte by byte.
        near_duplicates: number of training pictures that look like another one; None if they were not compared.
        leaked: number of held-out pictures that look like a training picture; None likewise.
        small: number of training pictures that are smaller than the resolution; None likewise.
        smallest: shortest side of all in pixels; None likewise.
        near_duplicate_examples: file names of some near duplicates.
        small_examples: file names of some small pictures.
    """

    train: int
    held_out: int
    rejected: Mapping[str, str]
    left_out: int
    duplicates: int
    near_duplicates: int | None = None
    leaked: int | None = None
    small: int | None = None
    smallest: int | None = None
    near_duplicate_examples: tuple[str, ...] = ()
    small_examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptionStatistics:
    """Statistics of the training captions.

    Attributes:
        pictures: number of pictures that have captions.
        distinct: number of pictures whose captions differ, those with the same ones counted once.
        shared_words: words that stand in the captions of nine of ten pictures, less those of the trigger and of
            templates; the value is the share of pictures.
        example: the first caption.
    """

    pictures: int
    distinct: int
    shared_words: Mapping[str, float]
    example: str


@dataclass(frozen=True)
class WeightChange:
    """Size of one network's adapter beside the weights it is added to, as Frobenius norms over all adapted layers.

    Attributes:
        layers: number of adapted layers.
        delta: norm of delta W.
        base: norm of W0 of the same layers; None where the base's files are not at hand.
    """

    layers: int
    delta: float
    base: float | None

    @property
    def ratio(self) -> float | None:
        """Return |delta W| / |W0|; None where the base's norm is not known."""
        return None if not self.base else self.delta / self.base


@dataclass(frozen=True)
class ShuffledCaptions:
    """Loss with another picture's caption less the loss with the picture's own; above 0 where captions fit.

    Attributes:
        base: the effect of shuffling on the base alone.
        adapter: the effect with the adapter.
        misfits: files of pictures that another picture's caption fits better, by the base's loss; the worst first.
    """

    base: Effect
    adapter: Effect
    misfits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurements:
    """Losses that the doctor measured because no run measures them.

    Attributes:
        train_captions: own against shuffled captions on training pictures; None where all captions are equal.
        held_out_captions: the same on held-out pictures.
        text_encoder: the whole adapter against its denoiser's part alone, on held-out pictures, else on training ones.
        without_shared_words: adapter against base on held-out pictures, their captions without the words that all
            training captions share.
    """

    train_captions: ShuffledCaptions | None = None
    held_out_captions: ShuffledCaptions | None = None
    text_encoder: Effect | None = None
    without_shared_words: Effect | None = None


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training holds at its peak, by the plan.

    Attributes:
        peak: bytes at the peak.
        parts: bytes of a training step by what they hold.
        available: bytes that the device has in all; None if that is not known.
        peak_after: peak after each change of the configuration, by the change as the command line takes it; empty where
            no change is needed.
    """

    peak: int
    parts: Mapping[str, int]
    available: int | None
    peak_after: Mapping[str, int]

    @property
    def is_scarce(self) -> bool:
        """Whether the peak takes nearly all that the device has, or more; True where that is not known."""
        return self.available is None or self.peak > _SCARCE_SHARE * self.available


@dataclass(frozen=True)
class CopyCheck:
    """Painted pictures that are nearer to a training picture than real pictures are to each other.

    Attributes:
        flagged: number of such pictures.
        painted: number of pictures that were painted.
        expected: number of flagged pictures expected by chance.
        nearest: files of the nearest pair: painted picture, training picture.
    """

    flagged: int
    painted: int
    expected: float
    nearest: tuple[str, str]


@dataclass(frozen=True)
class Evidence:
    """Everything the doctor knows of a run.

    Attributes:
        config: the run's configuration, resolved.
        ending: how the run ended.
        loss_curve: the training loss in segments.
        skipped_steps: number of steps that changed nothing because loss or gradient was not finite.
        overflowed_steps: number of steps in which float16 overflowed; a few at the start are normal.
        pictures: counts of pictures.
        captions: statistics of the captions; None where the pictures are not at hand.
        weight_changes: size of the adapter by network; empty without an adapter file.
        held_out: adapter against base on held-out pictures; None without a score.
        training: adapter against base on training pictures; None likewise.
        drift: adapter against base on pictures of other things, which should not change; None likewise.
        drift_source: where the pictures of other things come from.
        copies: result of the search for copies; None where no picture was painted for it.
        validation_scores: held-out scores while training, in the order of steps.
        checkpoints: steps of the checkpoints on disk.
        measurements: what the doctor measured; None if it measured nothing.
        measurement_error: why nothing could be measured, where it was asked for; else empty.
        memory: the plan's memory; None without a plan.
        run: the run's folder, as a command line takes it.
        unread_texts: what the run told of captions and prompts that its base does not see whole.
    """

    config: _Config
    ending: Ending
    loss_curve: tuple[CurveSegment, ...]
    skipped_steps: int
    overflowed_steps: int
    pictures: PictureCounts
    captions: CaptionStatistics | None = None
    weight_changes: Mapping[str, WeightChange] = field(default_factory=dict)
    held_out: Effect | None = None
    training: Effect | None = None
    drift: Effect | None = None
    drift_source: str = ""
    copies: CopyCheck | None = None
    validation_scores: tuple[ValidationScore, ...] = ()
    checkpoints: tuple[int, ...] = ()
    measurements: Measurements | None = None
    measurement_error: str = ""
    memory: MemoryEstimate | None = None
    run: str = "RUN"
    unread_texts: tuple[str, ...] = ()

    @property
    def epochs(self) -> float:
        """How often each training picture was trained on, on average."""
        train = self.config.train
        return self.ending.step * train.batch_size * train.gradient_accumulation_steps / max(1, self.pictures.train)

    @property
    def has_finished(self) -> bool:
        """Whether the run did all its steps, or early stopping ended it."""
        return self.ending.how in ("finished", "stopped early")


_ADAPTER = TypeAdapter(Evidence)


def write_evidence(evidence: Evidence) -> bytes:
    """Return evidence as JSON that :func:`read_evidence` reads back equal."""
    return _ADAPTER.dump_json(evidence, indent=1)


def read_evidence(content: bytes) -> Evidence:
    """Return evidence from JSON.

    Raises:
        pydantic.ValidationError: the JSON is no evidence.
    """
    return _ADAPTER.validate_json(content)
