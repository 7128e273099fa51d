"""What a run left behind, as the doctor's rules read it: plain numbers, no tensors and no files.

Evidence can be written as JSON and read back, so that a rule can be tried on a run that was made long ago.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import TypeAdapter

from veneer.config.schema import RunConfig

__all__ = [
    "Captions",
    "Copies",
    "Effect",
    "Ending",
    "Evidence",
    "Exchange",
    "Measured",
    "Memory",
    "Moved",
    "Pictures",
    "Scored",
    "Stretch",
    "read_evidence",
    "write_evidence",
]

_FULL = 0.9


@dataclass(frozen=True)
class Ending:
    """How a run's log ends.

    Attributes:
        how: ``cut off`` means that the log ends in the middle of training and nobody is at work on it, ``stopped
            early`` that its patience ran out, ``unknown`` that there is no log.
        step: the last step that was done.
        kind: class of the fault that ended it, e.g. ``OutOfMemoryError``; empty without one.
        text: what the fault says.
    """

    how: Literal["finished", "stopped early", "stopped", "failed", "cut off", "running", "unknown"]
    step: int
    kind: str = ""
    text: str = ""


@dataclass(frozen=True)
class Stretch:
    """A few steps in a row, summed up.

    Attributes:
        first: step, counted from 1.
        last: step.
        finite: how many of them had a finite loss.
        loss: mean of those; None without any.
        error: standard error of that mean; None for fewer than two.
        gradient: mean of their gradient norms before clipping; None if one is not finite.
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
        mean: of the second less the first, over pictures.
        low: lower end of its 95 % interval; None if it is open.
        high: upper end; likewise.
        before: the first loss.
        after: the second loss.
        pictures: how many were measured on.
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
    def is_less(self) -> bool:
        """Whether the second loss is lower for certain: the whole interval is below 0."""
        return self.high is not None and self.high < 0

    @property
    def is_more(self) -> bool:
        """Whether the second loss is higher for certain."""
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class Scored:
    """A held-out score taken while training."""

    step: int
    effect: Effect


@dataclass(frozen=True)
class Pictures:
    """The pictures of a run.

    Attributes:
        train: how many are trained on; 0: nobody counted.
        held_out: how many are held out.
        rejected: why pictures were left out, by file; the first few.
        left_out: how many were.
        twins: pictures that are there twice to the byte.
        alike: training pictures that look like another one; None if nobody looked.
        leaked: held-out pictures that look like a training picture; None likewise.
        small: training pictures whose short side is below the resolution; None likewise.
        smallest: the shortest side; None likewise.
        examples: names of some that are alike.
        small_examples: names of some that are small.
    """

    train: int
    held_out: int
    rejected: Mapping[str, str]
    left_out: int
    twins: int
    alike: int | None = None
    leaked: int | None = None
    small: int | None = None
    smallest: int | None = None
    examples: tuple[str, ...] = ()
    small_examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Captions:
    """What is said of the training pictures.

    Attributes:
        pictures: that have captions.
        distinct: different captions among them.
        shared: words that stand in nine of ten pictures' captions, less the trigger's, by share of pictures.
        example: the first caption.
    """

    pictures: int
    distinct: int
    shared: Mapping[str, float]
    example: str


@dataclass(frozen=True)
class Moved:
    """How far one network's adapter is from nothing, in Frobenius norms over all its adapted layers.

    Attributes:
        layers: adapted ones.
        delta: norm of delta W.
        base: norm of the same layers' W0; None where the base is not at hand.
    """

    layers: int
    delta: float
    base: float | None

    @property
    def ratio(self) -> float | None:
        """|delta W| / |W0|."""
        return None if not self.base else self.delta / self.base


@dataclass(frozen=True)
class Exchange:
    """Loss with every caption exchanged for another picture's, less the loss with its own; above 0 is as it should be.

    Attributes:
        base: without the adapter.
        adapter: with it.
        worst: pictures that another one's caption fits better by the base, the worst first.
    """

    base: Effect
    adapter: Effect
    worst: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What was measured for the doctor, beyond what the run itself did.

    Attributes:
        train_captions: own captions against exchanged ones on training pictures; None where all captions are one.
        held_captions: the same on held-out pictures.
        text_encoder: the whole adapter against its denoiser's part alone, on held-out pictures, else on training ones.
        bare: adapter against base on held-out pictures whose captions lack the words that all training captions share.
    """

    train_captions: Exchange | None = None
    held_captions: Exchange | None = None
    text_encoder: Effect | None = None
    bare: Effect | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes that the plan says training holds at its peak.

    Attributes:
        peak: in all.
        parts: of a training step, by what they are.
        available: what the device has in all; None if that is not known.
        after: the peak after changes of the configuration, each as the command line takes it; empty where none is
            needed.
    """

    peak: int
    parts: Mapping[str, int]
    available: int | None
    after: Mapping[str, int]

    @property
    def is_scarce(self) -> bool:
        """Whether the peak takes nearly all that the device has, or more; so too where that is not known."""
        return self.available is None or self.peak > _FULL * self.available


@dataclass(frozen=True)
class Copies:
    """Painted pictures that are nearer to a training picture than real ones ever are.

    Attributes:
        flagged: how many.
        painted: of how many.
        expected: by luck.
        nearest: the pair that is nearest.
    """

    flagged: int
    painted: int
    expected: float
    nearest: tuple[str, str]


@dataclass(frozen=True)
class Evidence:
    """All that the doctor knows of a run.

    Attributes:
        config: resolved.
        ending: how it ended.
        stretches: its loss curve.
        skipped: steps whose loss or gradient was not finite and that changed nothing.
        overflowed: steps that float16 overflowed in; the first few are as they should be.
        pictures: counts.
        captions: None where the pictures are not at hand.
        moved: by network; empty without an adapter file.
        held_out: adapter against base on held-out pictures; None without a score.
        training: the same on training pictures.
        drift: the same on pictures of other things, which the adapter should leave alone.
        drift_source: where those come from.
        copies: None where nothing was painted to compare.
        scored: the held-out score while training.
        checkpoints: steps of those that are kept.
        measured: what was measured for the doctor; None: nothing was.
        unmeasured: why it could not be, where it was asked for.
        memory: None without a plan of it.
    """

    config: RunConfig
    ending: Ending
    stretches: tuple[Stretch, ...]
    skipped: int
    overflowed: int
    pictures: Pictures
    captions: Captions | None = None
    moved: Mapping[str, Moved] = field(default_factory=dict)
    held_out: Effect | None = None
    training: Effect | None = None
    drift: Effect | None = None
    drift_source: str = ""
    copies: Copies | None = None
    scored: tuple[Scored, ...] = ()
    checkpoints: tuple[int, ...] = ()
    measured: Measured | None = None
    unmeasured: str = ""
    memory: Memory | None = None

    @property
    def showings(self) -> float:
        """How often each training picture was shown, on average."""
        train = self.config.train
        return self.ending.step * train.batch_size * train.gradient_accumulation_steps / max(1, self.pictures.train)

    @property
    def has_finished(self) -> bool:
        """Whether all steps were done, or as many as the run's patience allowed."""
        return self.ending.how in ("finished", "stopped early")


_ADAPTER = TypeAdapter(Evidence)


def write_evidence(evidence: Evidence) -> bytes:
    """JSON that :func:`read_evidence` reads back equal."""
    return _ADAPTER.dump_json(evidence, indent=1)


def read_evidence(content: bytes) -> Evidence:
    """Evidence from JSON."""
    values = json.loads(content)
    # its own way, for strict sections take paths and tuples only, and JSON has neither
    return _ADAPTER.validate_python({**values, "config": RunConfig.model_validate(values["config"])})
