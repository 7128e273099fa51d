"""Content of a report as plain data: ``report.json`` is exactly this, and the page shows nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from veneer.doctor.finding import Finding
from veneer.evaluate.results import Evaluated, Evaluation

__all__ = [
    "CurvePoint",
    "Ending",
    "Fact",
    "LossCurve",
    "Missing",
    "NearestPair",
    "Picture",
    "PictureGrid",
    "PlanComparison",
    "Report",
    "Section",
    "Tone",
    "TrainingSummary",
]

Tone = Literal["good", "bad", "unclear", "unmeasured"]
"""Tone of a verdict, which decides its colour and its mark."""
Section = Literal["help", "training", "scores", "samples", "before_after", "copying", "doctor", "plan"]
"""Part of the page that something is missing from."""


@dataclass(frozen=True)
class Ending:
    """How far a run came.

    Attributes:
        how: how it ended.
        step: number of steps done.
        max_steps: number of steps that it was to do.
        text: message of the exception that ended it; empty without one.
    """

    how: Literal["finished", "stopped early", "stopped", "failed", "cut off", "running"]
    step: int
    max_steps: int
    text: str = ""


@dataclass(frozen=True)
class CurvePoint:
    """Consecutive steps of a training, as one point of its loss curve.

    Attributes:
        step: the last of the steps.
        loss: mean of their losses; None if all were skipped.
        low: lowest of their losses.
        high: highest of their losses.
        smoothed: smoothed loss after the last of them.
    """

    step: int
    loss: float | None
    low: float | None
    high: float | None
    smoothed: float | None


@dataclass(frozen=True)
class LossCurve:
    """The training loss over the steps.

    Attributes:
        points: points in the order of their steps.
        steps_per_point: number of steps in each point but the last.
        skipped: number of steps whose loss was not finite.
    """

    points: tuple[CurvePoint, ...]
    steps_per_point: int
    skipped: int


@dataclass(frozen=True)
class TrainingSummary:
    """A training, summed up from its log.

    Attributes:
        ending: how far it came.
        curve: training loss; None before the first step.
        scores: scores measured while training.
        warnings: the first warnings.
        more_warnings: number of warnings after those.
        step_seconds: median time of a step in seconds; None where the log does not tell.
        memory_bytes: bytes in use at the peak, on a CPU by the whole process; None likewise.
    """

    ending: Ending
    curve: LossCurve | None
    scores: tuple[Evaluated, ...]
    warnings: tuple[str, ...]
    more_warnings: int
    step_seconds: float | None
    memory_bytes: int | None


@dataclass(frozen=True)
class Picture:
    """A picture on the page.

    Attributes:
        description: what it shows, for readers who do not see it.
        file: file that it was taken from.
        sha256: hash of its bytes on the page.
        data: its bytes as a ``data:`` URL; not in the JSON.
    """

    description: str
    file: str
    sha256: str
    data: Annotated[str, Field(exclude=True)]


@dataclass(frozen=True)
class PictureGrid:
    """Pictures in rows and columns; or one picture of them all, where it cannot be taken apart.

    Attributes:
        columns: names of the columns.
        rows: prompts; empty where the pictures could not be taken apart.
        pictures: pictures by row.
    """

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    pictures: tuple[tuple[Picture, ...], ...]


@dataclass(frozen=True)
class NearestPair:
    """A painted picture beside the training picture nearest to it.

    Attributes:
        caption: prompt of the painted picture.
        painted: the painted picture; None if its file is gone.
        nearest: the training picture as it is; None if its file is gone.
        name: file name of the training picture.
        angle: angle between their latents, in degrees.
        mirrored: whether the training picture is nearer when mirrored.
        flagged: whether they are nearer than any two real pictures.
    """

    caption: str
    painted: Picture | None
    nearest: Picture | None
    name: str
    angle: float
    mirrored: bool
    flagged: bool


@dataclass(frozen=True)
class PlanComparison:
    """A number of the plan beside the number that was measured.

    Attributes:
        what: what the number is of.
        planned: number in the plan; None where the plan has none.
        measured: number measured in the run; None where nobody measured it.
        unit: unit of both.
    """

    what: str
    planned: int | None
    measured: float | None
    unit: Literal["bytes", "steps", "parameters", "seconds"]


@dataclass(frozen=True)
class Fact:
    """A fact about where the run's parts are from, by its name."""

    name: str
    value: str


@dataclass(frozen=True)
class Missing:
    """Something that a section could show, and how to get it.

    Attributes:
        section: section that it is missing from.
        what: what is missing.
        how: how to get it, mostly a command.
    """

    section: Section
    what: str
    how: str


@dataclass(frozen=True)
class Report:
    """Everything that a report shows of a run.

    Attributes:
        title: name of the run.
        tone: tone of the verdict.
        verdict: one sentence on what the adapter does.
        training: the training, by its log; None where there is no log.
        evaluation: measurements at the end; None where nothing was measured.
        samples: pictures painted while training, by step; None without any.
        before_after: pictures by base and adapter, and real ones; None without them.
        nearest_pairs: painted pictures and the training pictures nearest to them, the nearest first.
        plan: numbers of the plan and of the run.
        findings: the doctor's findings; None if there is no diagnosis.
        facts: facts about adapter, base, data and program, with their hashes.
        config: the whole configuration, as YAML; None where there is none.
        missing: what is not shown, and how to get it.
    """

    title: str
    tone: Tone
    verdict: str
    training: TrainingSummary | None
    evaluation: Evaluation | None
    samples: PictureGrid | None
    before_after: PictureGrid | None
    nearest_pairs: tuple[NearestPair, ...]
    plan: tuple[PlanComparison, ...]
    findings: tuple[Finding, ...] | None
    facts: tuple[Fact, ...]
    config: str | None
    missing: tuple[Missing, ...]
