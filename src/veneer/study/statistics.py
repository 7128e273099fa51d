"""The statistics of a study: ways to train, each repeated over seeds, compared on the same held-out pictures.

Two things are chance: which pictures were held out, and which seed a training had. Every picture is measured under
every seed, so both are crossed, and a difference of two ways is a table D of seeds x pictures with

    D[s, i] = m + a[s] + b[i] + e[s, i]

where a, b and e are independent with mean zero (the two-way random model, Searle, Casella and McCulloch 1992,
chapter 4). A loss is first averaged over a picture's draws of noise, which are the same for all ways and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from veneer.evaluate.heldout import Losses, paired_difference
from veneer.evaluate.interval import t_quantile

__all__ = ["Advice", "Difference", "Failure", "Outcome", "Row", "StoppedEarly", "Table", "difference", "tabulate"]

_EQUAL = 1.25  # ways whose parameters differ by less than this factor are not told apart by size


@dataclass(frozen=True)
class Outcome:
    """What one training came to.

    Attributes:
        point: the way it was trained.
        seed: of the training.
        trainable: parameters.
        file_bytes: of the adapter file.
        losses: held-out, (pictures, draws).
        seconds: of training; None where nothing was trained.
        memory_bytes: the most memory that training took; None where that was not measured.
    """

    point: str
    seed: int
    trainable: int
    file_bytes: int
    losses: Losses
    seconds: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Failure:
    """A training that came to nothing.

    Attributes:
        point: the way it was trained.
        seed: of the training.
        reason: in one line.
    """

    point: str
    seed: int
    reason: str


@dataclass(frozen=True)
class StoppedEarly:
    """A training that a search ended by design, for it did worse than others after as many steps.

    Attributes:
        point: the way it was trained.
        seed: of the training.
        step: steps that it did.
        steps: of a whole training.
        loss: mean held-out loss after ``step``.
    """

    point: str
    seed: int
    step: int
    steps: int
    loss: float

    def __str__(self) -> str:
        """When, and at which loss."""
        return f"stopped early after {self.step} of {self.steps} steps, at a loss of {self.loss:.4f}"


@dataclass(frozen=True)
class Difference:
    """Of two ways' held-out losses, paired by picture and by seed; below 0 the first is better.

    Attributes:
        mean: over pictures and seeds.
        low: lower end of the 95 % interval.
        high: upper end.
        seeds: how many both were trained with; with one, the interval is over pictures alone.
    """

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        """The mean with its interval."""
        if math.isinf(self.low):
            return f"{self.mean:+.4f} [no interval: one picture]"
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether the two are told apart."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Row:
    """One way to train, over its seeds.

    Attributes:
        point: its name.
        trainable: parameters.
        file_bytes: of the adapter file.
        seconds: of one training, the mean over seeds; None where not measured.
        memory_bytes: the most over seeds; None where not measured.
        losses: mean held-out loss by seed.
        versus_base: less the base's loss; below 0 the adapter helps.
        versus_reference: less the reference's loss; None for the reference itself, or if they share no seed.
        versus_best: less that of the way with the lowest loss; None likewise.
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
    """What the table says, in words that claim no more than it does.

    Attributes:
        best: the way of the lowest loss.
        equals: those that are not told apart from it.
        smallest: the way of fewest parameters that loses nothing; None if the sizes are alike, or nothing can be said.
        text: a few sentences.
    """

    best: str
    equals: tuple[str, ...]
    smallest: str | None
    text: str


@dataclass(frozen=True)
class Table:
    """A study's result.

    Attributes:
        rows: in the order that the study names the ways.
        failures: trainings that came to nothing.
        reference: the way that the others are compared with; None if it came to nothing.
        base: mean held-out loss of the base alone.
        pictures: held-out ones.
        draws: of noise for each.
        seeds: asked for.
        margin: share of the reference's gain that may be lost.
        advice: None without any row.
        stopped: trainings that were ended early by design; they are in no row.
    """

    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    reference: str | None
    base: float
    pictures: int
    draws: int
    seeds: tuple[int, ...]
    margin: float
    advice: Advice | None
    stopped: tuple[StoppedEarly, ...] = ()


def difference(first: Mapping[int, Losses], second: Mapping[int, Losses]) -> Difference | None:
    """Compare two ways over the seeds that both have; None if there is none.

    The variance of the mean is (MSA + MSB - MSE) / (S I), with the mean squares of S seeds, of I pictures and of the
    rest; that it is never less than what seeds alone or pictures alone say keeps it from vanishing by chance. The
    interval is Student's, with Satterthwaite's degrees of freedom (Satterthwaite 1946). With one seed there is no
    telling seeds from the rest, and the interval is ``paired_difference``'s, over pictures alone.

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
    """Half of the 95 % interval of the mean of a crossed table."""
    seeds, pictures = gap_SI.shape
    if pictures == 1:
        return math.inf
    by_seed, by_picture = gap_SI.mean(axis=1), gap_SI.mean(axis=0)
    rest = gap_SI - by_seed[:, None] - by_picture + gap_SI.mean()
    squares = (
        pictures * float(by_seed.var(ddof=1)),
        seeds * float(by_picture.var(ddof=1)),
        float((rest**2).sum()) / ((seeds - 1) * (pictures - 1)),
    )
    total = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    if total == 0:
        return 0.0
    freedoms = (seeds - 1, pictures - 1, (seeds - 1) * (pictures - 1))
    # each as a share of the total, whose squares do not underflow
    spread = sum((square / total) ** 2 / freedom for square, freedom in zip(squares, freedoms, strict=True))
    return t_quantile(max(1.0, 1 / spread)) * math.sqrt(total / (seeds * pictures))


def tabulate(
    outcomes: Sequence[Outcome],
    base: Losses,
    *,
    seeds: Sequence[int],
    failures: Sequence[Failure] = (),
    stopped: Sequence[StoppedEarly] = (),
    reference: str | None = None,
    margin: float = 0.02,
) -> Table:
    """Put a study's trainings into a table.

    Args:
        outcomes: of all trainings that ended, in the order of the table.
        base: the base's losses, (pictures, draws).
        seeds: asked for.
        failures: of those that came to nothing.
        stopped: of those that were ended early.
        reference: name of the way to compare with; default: that of the lowest loss, as for a search.
        margin: share of the reference's gain that a smaller way may lose.
    """
    ways: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        ways.setdefault(outcome.point, []).append(outcome)
    losses = {name: {each.seed: each.losses for each in group} for name, group in ways.items()}
    best = min(losses, key=lambda name: _mean(losses[name]), default=None)
    named = best if reference is None else reference if reference in ways else None
    rows = tuple(_row(group, losses, base, named, best) for group in ways.values())
    advice = _advise(rows, named, margin, chosen=reference is None) if rows else None
    pictures, draws = base.shape
    measured = float(base.mean()), pictures, draws
    return Table(rows, tuple(failures), named, *measured, tuple(seeds), margin, advice, tuple(stopped))


def _mean(losses: Mapping[int, Losses]) -> float:
    return float(np.mean([each.mean() for each in losses.values()]))


def _row(
    group: Sequence[Outcome],
    losses: Mapping[str, Mapping[int, Losses]],
    base: Losses,
    reference: str | None,
    best: str | None,
) -> Row:
    own = losses[group[0].point]

    def versus(other: str | None) -> Difference | None:
        return None if other is None or other == group[0].point else difference(own, losses[other])

    versus_base = difference(own, dict.fromkeys(own, base))
    assert versus_base is not None
    seconds = [each.seconds for each in group if each.seconds is not None]
    memory = [each.memory_bytes for each in group if each.memory_bytes is not None]
    means = {seed: float(each.mean()) for seed, each in own.items()}
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


def _advise(rows: Sequence[Row], reference: str | None, margin: float, *, chosen: bool) -> Advice:
    """What the rows say; ``chosen``: the reference is but the best of them."""
    best = min(rows, key=lambda row: row.loss)
    equals = tuple(row.point for row in rows if row.versus_best is not None and not row.versus_best.excludes_zero)
    texts = [_best_in_words(best, equals, rows)]
    if chosen and len(rows) > 1:
        texts.append("It was chosen among them on these pictures, which flatters it: confirm it with other seeds.")
    smallest = None
    named = next((row for row in rows if row.point == reference), None)
    if named is not None and max(row.trainable for row in rows) > _EQUAL * min(row.trainable for row in rows):
        smallest, text = _smallest(rows, named, margin)
        texts.append(text)
    if best.versus_base.seeds == 1:
        texts.append("One training each: the intervals are over pictures alone and say nothing of another training.")
    elif best.versus_base.seeds == 2:
        texts.append("Two seeds tell little of luck: the intervals are wide, and may yet be too narrow.")
    return Advice(best.point, equals, smallest, " ".join(texts))


def _best_in_words(best: Row, equals: Sequence[str], rows: Sequence[Row]) -> str:
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
    """A sentence on the ways that share no seed with another; nothing if there are none."""
    return f" Not compared with {other.point}, for no seed is done of both: {', '.join(points)}." if points else ""


def _smallest(rows: Sequence[Row], reference: Row, margin: float) -> tuple[str | None, str]:
    """The way of fewest parameters that loses nothing.

    Its interval against the reference has zero or better in it, and its mean is within the margin.
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
    if gap.high <= 0:
        return "it is better"
    if math.isinf(gap.high):
        return "it may lose any share of the gain"
    text = f"it loses at most {gap.high / gain:.1%} of the gain"
    return text if gap.high <= margin * gain else f"{text}, and more pictures or seeds would tell whether it does"
