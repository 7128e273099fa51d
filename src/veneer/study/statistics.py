"""The statistics of a study: points, each trained with several seeds, compared on the same held-out pictures.

Two things are chance: which pictures were held out, and which seed a training had. Every picture is measured under
every seed, so both are crossed, and a difference of two points is a table D of seeds x pictures with

    D[s, i] = m + a[s] + b[i] + e[s, i]

where a, b and e are independent with mean zero (the two-way random model, Searle, Casella and McCulloch 1992,
chapter 4). A loss is first averaged over a picture's draws of noise, which are the same for all points and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from veneer.evaluate.comparison import Losses, paired_difference
from veneer.evaluate.interval import t_quantile

__all__ = [
    "Advice",
    "Difference",
    "Row",
    "StoppedEarly",
    "Table",
    "TrialFailure",
    "TrialResult",
    "difference",
    "tabulate",
]

_SAME_SIZE = 1.25  # points whose parameter counts differ by less than this factor count as equally large


@dataclass(frozen=True)
class TrialResult:
    """The result of one finished training.

    Attributes:
        point: name of the point.
        seed: of the training.
        trainable: number of trained parameters.
        file_bytes: size of the adapter file.
        losses: held-out losses, (pictures, draws).
        seconds: duration of training; None where nothing was trained.
        memory_bytes: peak memory of training; None where that was not measured.
    """

    point: str
    seed: int
    trainable: int
    file_bytes: int
    losses: Losses
    seconds: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class TrialFailure:
    """A training that failed.

    Attributes:
        point: name of the point.
        seed: of the training.
        reason: in one line.
    """

    point: str
    seed: int
    reason: str


@dataclass(frozen=True)
class StoppedEarly:
    """A training that a search stopped on purpose, because it did worse than others after as many steps.

    Attributes:
        point: name of the point.
        seed: of the training.
        step: steps done.
        steps: steps of a whole training.
        loss: mean held-out loss after ``step``.
    """

    point: str
    seed: int
    step: int
    steps: int
    loss: float

    def __str__(self) -> str:
        """Return when it was stopped, and at which loss."""
        return f"stopped early after {self.step} of {self.steps} steps, at a loss of {self.loss:.4f}"


@dataclass(frozen=True)
class Difference:
    """The difference of two points' held-out losses, paired by picture and by seed; below 0 the first is better.

    Attributes:
        mean: over pictures and seeds.
        low: lower end of the 95 % interval.
        high: upper end.
        seeds: number of seeds that both were trained with; with one, the interval is over pictures alone.
    """

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        """Return the mean with its interval."""
        if math.isinf(self.low):
            return f"{self.mean:+.4f} [no interval: one picture]"
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Row:
    """One point of a study, over its seeds.

    Attributes:
        point: its name.
        trainable: number of trained parameters.
        file_bytes: size of the adapter file.
        seconds: duration of one training, the mean over seeds; None where not measured.
        memory_bytes: peak memory, the largest over seeds; None where not measured.
        losses: mean held-out loss by seed.
        versus_base: loss less the base's; below 0 the adapter helps.
        versus_reference: loss less the reference's; None for the reference itself, or if they share no seed.
        versus_best: loss less the lowest one of a point; None likewise.
        loss: mean over seeds.
    """

    point: str
    trainable: int
    file_bytes: int
    seconds: float | None
    memory_bytes: int | None
    losses: Mapping[int, float]
    versus_base: Difference
    versus_reference: Difference | None
    versus_best: Difference | None
    loss: float


@dataclass(frozen=True)
class Advice:
    """The conclusions of a table.

    Attributes:
        best: the point with the lowest loss.
        equals: points that cannot be distinguished from it.
        smallest: the point with the fewest parameters that loses nothing; None if the sizes are alike, or nothing can
            be said.
        text: the same in a few sentences, for the user.
    """

    best: str
    equals: tuple[str, ...]
    smallest: str | None
    text: str


@dataclass(frozen=True)
class Table:
    """The results of a study.

    Attributes:
        rows: one for each point, in the order of the study.
        failures: trainings that failed.
        reference: the point that the others are compared with; None if it has no result.
        base: mean held-out loss of the base alone.
        pictures: number of held-out pictures.
        draws: number of noise draws for each.
        seeds: requested ones.
        margin: share of the reference's gain that may be lost.
        advice: None without any row.
        stopped: trainings that were stopped early on purpose; they are in no row.
    """

    rows: tuple[Row, ...]
    failures: tuple[TrialFailure, ...]
    reference: str | None
    base: float
    pictures: int
    draws: int
    seeds: tuple[int, ...]
    margin: float
    advice: Advice | None
    stopped: tuple[StoppedEarly, ...] = ()


def difference(first: Mapping[int, Losses], second: Mapping[int, Losses]) -> Difference | None:
    """Compare two points over the seeds that both have; None if there is none.

    The variance of the mean is (MSA + MSB - MSE) / (S I), with the mean squares of S seeds, of I pictures and of the
    rest; it is at least what seeds alone or pictures alone give, so
    that it does not vanish by chance. The interval is Student's, with Satterthwaite's degrees of freedom (Satterthwaite
    1946). With one seed the variance of seeds cannot be estimated, and the interval is ``paired_difference``'s, over
    pictures alone.

    Args:
        first: losses (pictures, draws) by seed.
        second: likewise, of the same pictures and noise.
    """
    seeds = [seed for seed in first if seed in second]
    if not seeds:
        return None
    if len(seeds) == 1:
        score = paired_difference(first[seeds[0]], second[seeds[0]])
        return Difference(score.mean, score.low, score.high, 1)
    gap_SI = np.stack([(first[seed] - second[seed]).mean(axis=1) for seed in seeds])
    mean = float(gap_SI.mean())
    half = _half_width(gap_SI)
    return Difference(mean, mean - half, mean + half, len(seeds))


def _half_width(gap_SI: Losses) -> float:
    """Return half of the 95 % interval of the mean of a crossed table (seeds, pictures)."""
    seeds, pictures = gap_SI.shape
    if pictures == 1:
        return math.inf
    by_seed, by_picture = gap_SI.mean(axis=1), gap_SI.mean(axis=0)
    residual_SI = gap_SI - by_seed[:, None] - by_picture + gap_SI.mean()
    squares = (
        pictures * float(by_seed.var(ddof=1)),
        seeds * float(by_picture.var(ddof=1)),
        float((residual_SI**2).sum()) / ((seeds - 1) * (pictures - 1)),
    )
    total = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    if total == 0:
        return 0.0
    freedoms = (seeds - 1, pictures - 1, (seeds - 1) * (pictures - 1))
    # each as a share of the total, whose squares do not underflow
    spread = sum((square / total) ** 2 / freedom for square, freedom in zip(squares, freedoms, strict=True))
    return t_quantile(max(1.0, 1 / spread)) * math.sqrt(total / (seeds * pictures))


def tabulate(
    results: Sequence[TrialResult],
    base: Losses,
    *,
    seeds: Sequence[int],
    failures: Sequence[TrialFailure] = (),
    stopped: Sequence[StoppedEarly] = (),
    reference: str | None = None,
    margin: float = 0.02,
) -> Table:
    """Compare a study's trainings in a table.

    Args:
        results: of all trainings that ended, in the order of the table.
        base: the base's losses, (pictures, draws).
        seeds: requested ones.
        failures: trainings that failed.
        stopped: trainings that were stopped early.
        reference: name of the point to compare with; default: the one with the lowest loss, as for a search.
        margin: share of the reference's gain that a smaller point may lose.
    """
    by_point: dict[str, list[TrialResult]] = {}
    for result in results:
        by_point.setdefault(result.point, []).append(result)
    losses = {name: {result.seed: result.losses for result in group} for name, group in by_point.items()}
    best = min(losses, key=lambda name: _mean(losses[name]), default=None)
    reference_point = best if reference is None else reference if reference in by_point else None
    rows = tuple(_row(group, losses, base, reference_point, best) for group in by_point.values())
    advice = _advise(rows, reference_point, margin, is_best=reference is None) if rows else None
    pictures, draws = base.shape
    return Table(
        rows=rows,
        failures=tuple(failures),
        reference=reference_point,
        base=float(base.mean()),
        pictures=pictures,
        draws=draws,
        seeds=tuple(seeds),
        margin=margin,
        advice=advice,
        stopped=tuple(stopped),
    )


def _mean(losses: Mapping[int, Losses]) -> float:
    """Return the mean over seeds of the mean losses."""
    return float(np.mean([seed_losses.mean() for seed_losses in losses.values()]))


def _row(
    group: Sequence[TrialResult],
    losses: Mapping[str, Mapping[int, Losses]],
    base: Losses,
    reference: str | None,
    best: str | None,
) -> Row:
    """Return the row of one point, of whose seeds ``group`` has the results."""
    own = losses[group[0].point]

    def versus(other: str | None) -> Difference | None:
        return None if other is None or other == group[0].point else difference(own, losses[other])

    versus_base = difference(own, dict.fromkeys(own, base))
    assert versus_base is not None
    seconds = [result.seconds for result in group if result.seconds is not None]
    memory = [result.memory_bytes for result in group if result.memory_bytes is not None]
    means = {seed: float(seed_losses.mean()) for seed, seed_losses in own.items()}
    return Row(
        point=group[0].point,
        trainable=group[0].trainable,
        file_bytes=group[0].file_bytes,
        seconds=sum(seconds) / len(seconds) if seconds else None,
        memory_bytes=max(memory, default=None),
        losses=means,
        versus_base=versus_base,
        versus_reference=versus(reference),
        versus_best=versus(best),
        loss=sum(means.values()) / len(means),
    )


def _advise(rows: Sequence[Row], reference: str | None, margin: float, *, is_best: bool) -> Advice:
    """Return the conclusions of the rows; ``is_best``: the reference is the best of them, not one that was named."""
    best = min(rows, key=lambda row: row.loss)
    equals = tuple(row.point for row in rows if row.versus_best is not None and not row.versus_best.excludes_zero)
    texts = [_best_in_words(best, equals, rows)]
    if is_best and len(rows) > 1:
        texts.append("It was chosen among them on these pictures, which flatters it: confirm it with other seeds.")
    smallest = None
    reference_row = next((row for row in rows if row.point == reference), None)
    if reference_row is not None and max(row.trainable for row in rows) > _SAME_SIZE * min(
        row.trainable for row in rows
    ):
        smallest, text = _smallest(rows, reference_row, margin)
        texts.append(text)
    if best.versus_base.seeds == 1:
        texts.append("One training each: the intervals are over pictures alone and say nothing of another training.")
    elif best.versus_base.seeds == 2:
        texts.append("Two seeds tell little of luck: the intervals are wide, and may yet be too narrow.")
    return Advice(best.point, equals, smallest, " ".join(texts))


def _best_in_words(best: Row, equals: Sequence[str], rows: Sequence[Row]) -> str:
    """Return a sentence on the best point, and which others cannot be distinguished from it."""
    if len(rows) == 1:
        return f"{best.point} against the base: {best.versus_base}."
    alone = [row.point for row in rows if row is not best and row.versus_best is None]
    text = f"The lowest loss is that of {best.point}"
    if equals:
        text += f"; not told apart from it: {', '.join(equals)}"
    elif len(alone) < len(rows) - 1:
        text += f", and every other {'that has a seed in common with it ' if alone else ''}is told apart from it"
    return f"{text}.{_not_compared(alone, best)}"


def _not_compared(points: Sequence[str], other: Row) -> str:
    """Return a sentence on the points that share no seed with another; nothing if there are none."""
    return f" Not compared with {other.point}, for no seed is done of both: {', '.join(points)}." if points else ""


def _smallest(rows: Sequence[Row], reference: Row, margin: float) -> tuple[str | None, str]:
    """Return the point with the fewest parameters that loses nothing, and a sentence on it.

    It loses nothing if its interval against the reference includes zero or lies below, and its mean is within the
    margin.
    """
    gain = -reference.versus_base.mean
    if reference.versus_base.high >= 0:
        return None, f"{reference.point} is not shown to help over the base, so no smaller one is advised."
    allowed = margin * gain
    smaller = [row for row in sorted(rows, key=lambda row: row.trainable) if row.trainable < reference.trainable]
    if not smaller:
        return reference.point, f"None is smaller than {reference.point}, which the others are compared with."
    alone = _not_compared([row.point for row in smaller if row.versus_reference is None], reference)
    for row in smaller:
        gap = row.versus_reference
        if gap is None or gap.low > 0 or gap.mean > allowed:
            continue
        return row.point, (
            f"The smallest that loses nothing against {reference.point} is {row.point}: {gap}, where {allowed:.4f} is "
            f"allowed ({margin:.0%} of the gain of {gain:.4f}); by the interval, {_at_most(gap, gain, margin)}.{alone}"
        )
    if all(row.versus_reference is None for row in smaller):
        return None, alone.lstrip()
    who = f"Every smaller one{' that is compared' if alone else ''}"
    return reference.point, f"{who} loses against {reference.point}, or more than {margin:.0%} of its gain.{alone}"


def _at_most(gap: Difference, gain: float, margin: float) -> str:
    """Return the most that a point may lose by its interval, in words."""
    if gap.high <= 0:
        return "it is better"
    if math.isinf(gap.high):
        return "it may lose any share of the gain"
    text = f"it loses at most {gap.high / gain:.1%} of the gain"
    return text if gap.high <= margin * gain else f"{text}, and more pictures or seeds would tell whether it does"
