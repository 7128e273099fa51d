"""All that a report tells, as plain data: ``report.json`` is it, and the page shows nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from veneer.evaluate.results import Evaluated, Evaluation

__all__ = [
    "Advised",
    "Course",
    "Curve",
    "Ending",
    "Missing",
    "Named",
    "Painting",
    "Planned",
    "Point",
    "Report",
    "Section",
    "Strip",
    "Tone",
    "Twin",
]

Tone = Literal["good", "bad", "unclear", "unmeasured"]
Section = Literal["verdict", "help", "course", "scores", "samples", "sheet", "copying", "doctor", "plan"]
"""Where on the page something is told, or missed."""


@dataclass(frozen=True)
class Ending:
    """How far a run came.

    Attributes:
        how: it ended.
        step: the last one done.
        steps: asked for.
        text: the fault, of a run that failed.
    """

    how: Literal["finished", "stopped early", "stopped", "failed", "cut off", "running"]
    step: int
    steps: int
    text: str = ""


@dataclass(frozen=True)
class Point:
    """Some steps of a training, one after another, as one point of its curve.

    Attributes:
        step: the last of them.
        loss: mean over them; None if all were skipped.
        low: the lowest of them.
        high: the highest.
        smoothed: the smoothed loss after the last one.
    """

    step: int
    loss: float | None
    low: float | None
    high: float | None
    smoothed: float | None


@dataclass(frozen=True)
class Curve:
    """The training loss.

    Attributes:
        points: in the order of their steps.
        width: steps in each, but for the last.
        skipped: steps whose loss was not finite.
    """

    points: tuple[Point, ...]
    width: int
    skipped: int


@dataclass(frozen=True)
class Course:
    """What the log tells of a training.

    Attributes:
        ending: how far it came.
        curve: of the loss; None before the first step.
        scores: measured on the way.
        warnings: that were told, the first ones.
        more_warnings: how many came after those.
        step_seconds: median time of a step; None where the log does not tell.
        memory_bytes: in use at the fullest moment of training, by the whole process on a CPU; None likewise.
    """

    ending: Ending
    curve: Curve | None
    scores: tuple[Evaluated, ...]
    warnings: tuple[str, ...]
    more_warnings: int
    step_seconds: float | None
    memory_bytes: int | None


@dataclass(frozen=True)
class Painting:
    """A picture on the page.

    Attributes:
        about: what it shows, for those who do not see it.
        file: that it was taken from.
        sha256: of its bytes on the page.
        data: those, as a ``data:`` URL; not in the JSON.
    """

    about: str
    file: str
    sha256: str
    data: str


@dataclass(frozen=True)
class Strip:
    """Pictures of several prompts, of each the same number; or one picture of all of them.

    Attributes:
        columns: what they differ in.
        rows: prompts; none where the pictures could not be taken apart.
        pictures: by row.
    """

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    pictures: tuple[tuple[Painting, ...], ...]


@dataclass(frozen=True)
class Twin:
    """A painted picture beside the training picture nearest to it.

    Attributes:
        caption: what was painted.
        painted: the picture.
        nearest: the training picture, as it is; None if it is not here any more.
        name: file of the training picture.
        angle: between their latents, in degrees.
        mirrored: the nearer way round is the mirrored one.
        flagged: nearer than any real picture is to another's.
    """

    caption: str
    painted: Painting | None
    nearest: Painting | None
    name: str
    angle: float
    mirrored: bool
    flagged: bool


@dataclass(frozen=True)
class Planned:
    """A figure of the plan beside what came of it.

    Attributes:
        what: it is of.
        planned: before the run.
        measured: of the run; None where nobody measured it.
        unit: ``bytes``, ``steps``, ``parameters`` or ``seconds``.
    """

    what: str
    planned: int | None
    measured: float | None
    unit: Literal["bytes", "steps", "parameters", "seconds"]


@dataclass(frozen=True)
class Advised:
    """One of the doctor's findings.

    Attributes:
        name: of the illness.
        what: one sentence.
        level: ``ill`` or ``note``.
        sure: no other reading of the evidence.
        evidence: a sentence each.
        changes: of the configuration, as the command line takes them, and why.
        advice: what no key can do.
    """

    name: str
    what: str
    level: Literal["problem", "note"]
    sure: bool
    evidence: tuple[str, ...]
    changes: tuple[Named, ...]
    advice: tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """Something by its name."""

    name: str
    value: str


@dataclass(frozen=True)
class Missing:
    """What the report could tell, and does not.

    Attributes:
        section: where it would stand.
        what: is missing.
        how: to get it.
    """

    section: Section
    what: str
    how: str


@dataclass(frozen=True)
class Report:
    """A run, told.

    Attributes:
        title: the run's name.
        tone: of the verdict.
        verdict: one sentence.
        course: of the training; None where there is no log.
        evaluation: of the adapter at the end; None where nothing was measured.
        samples: pictures painted on the way, by step.
        sheet: base, adapter and real pictures.
        twins: painted pictures and the training pictures nearest to them, nearest first.
        plan: figures of the plan and of the run.
        findings: the doctor's; None if he was not asked.
        facts: of the adapter, the base, the data and the program, with their hashes.
        config: the whole configuration, as YAML; None where there is none.
        missing: what is not told, and how to get it.
    """

    title: str
    tone: Tone
    verdict: str
    course: Course | None
    evaluation: Evaluation | None
    samples: Strip | None
    sheet: Strip | None
    twins: tuple[Twin, ...]
    plan: tuple[Planned, ...]
    findings: tuple[Advised, ...] | None
    facts: tuple[Named, ...]
    config: str | None
    missing: tuple[Missing, ...]

    def lacks(self, section: Section) -> tuple[Missing, ...]:
        """What a section misses."""
        return tuple(each for each in self.missing if each.section == section)
