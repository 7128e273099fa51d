"""Events of a training loop, for its callbacks: the bar, the log, the trackers, the web page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from veneer.adapter.protocol import AdapterWeights
from veneer.adapter.targets import BlockCoverage

__all__ = [
    "CheckpointDue",
    "EncodingProgress",
    "EvaluationDue",
    "Event",
    "Finished",
    "SampleDue",
    "SkipReason",
    "StepDone",
    "StepSkipped",
    "Stopped",
    "TrainingStarted",
    "Warned",
]

SkipReason: TypeAlias = Literal["loss_not_finite", "gradient_not_finite", "float16_overflow"]
"""Why a step changed nothing; ``float16_overflow`` only lowers the loss scale and is common."""


@dataclass(frozen=True)
class TrainingStarted:
    """First event of a training loop: nothing is trained yet.

    Attributes:
        start_step: steps already done by an earlier run whose state was loaded.
        max_steps: steps in all.
        blocks: that the adapter reaches, by network.
    """

    start_step: int
    max_steps: int
    blocks: Mapping[str, BlockCoverage] = field(default_factory=dict)


@dataclass(frozen=True)
class EncodingProgress:
    """Pictures and captions are encoded, before the first step that needs them; comes first, last, and in between.

    Attributes:
        done: how many are encoded.
        total: how many there are.
        found: how many of them were in the cache already.
    """

    done: int
    total: int
    found: int

    @property
    def is_told(self) -> bool:
        """Whether it is worth an event: it is the first, the last, or one of ten between."""
        return self.done in (self.found, self.total) or self.done % max(1, self.total // 10) == 0


@dataclass(frozen=True)
class StepDone:
    """One optimiser step.

    Attributes:
        step: counts from 1, so that it is also how many are done.
        loss: mean over the step's pictures of the weighted loss; NaN where it or the gradient was not finite and the
            step was skipped.
        prior_loss: the same over its pictures of the class, before ``data.prior.weight``; None without them.
        rates: learning rate by network.
        gradient_norm: of all adapter parameters together, before clipping.
    """

    step: int
    loss: float
    prior_loss: float | None
    rates: Mapping[str, float]
    gradient_norm: float


@dataclass(frozen=True)
class SampleDue:
    """Sample pictures are due after ``step`` steps; the networks carry the adapter as it would be saved, in eval mode.

    After 0 steps it changes nothing, so they are the base's.
    """

    step: int


@dataclass(frozen=True)
class EvaluationDue:
    """A score is due after ``step`` steps; the networks carry the adapter as it would be saved, in eval mode."""

    step: int


@dataclass(frozen=True)
class CheckpointDue:
    """The trainer's ``state_dict()`` is due to be kept; all else that ``step`` made due has been yielded before."""

    step: int


@dataclass(frozen=True)
class StepSkipped:
    """A step changed nothing, because its loss or gradient was not finite; comes after its ``StepDone``.

    Attributes:
        step: counts from 1.
        reason: why, for programs.
        text: why, for a person.
    """

    step: int
    reason: SkipReason
    text: str

    def __str__(self) -> str:
        """Return one line for a person."""
        return f"step {self.step} changed nothing: {self.text}"


@dataclass(frozen=True)
class Warned:
    """Something the user should know that stops nothing.

    Attributes:
        code: what kind of thing it is, for programs: ``room.problem``, such as ``checkpoint.not_written``.
        text: the message.
        details: what it concerns, such as each caption that is cut, a line each.
    """

    code: str
    text: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line for a person."""
        return "; ".join([self.text, *self.details])


@dataclass(frozen=True)
class Finished:
    """Last event: the trained adapter, or with ``train.ema_decay`` its average; detached float32 copies on the CPU."""

    step: int
    weights: AdapterWeights = field(repr=False)


@dataclass(frozen=True)
class Stopped:
    """Last event of a loop that was asked to stop; a checkpoint was due before it."""

    step: int


Event: TypeAlias = (
    TrainingStarted
    | EncodingProgress
    | StepDone
    | StepSkipped
    | SampleDue
    | EvaluationDue
    | CheckpointDue
    | Warned
    | Stopped
    | Finished
)
