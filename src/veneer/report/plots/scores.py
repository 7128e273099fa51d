"""Plots of scores over the steps: the change of the loss with its intervals, whole and by parts of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from veneer.evaluate.results import Band, Evaluated, Score
from veneer.report.formatting import band_name, change, interval_text, is_closed, share, signed
from veneer.report.plots.axes import Axis, Frame, axes
from veneer.report.plots.svg import Area, Dot, Drawing, Line, Rule, Shape, Text

__all__ = ["band_plots", "interval_ends", "score_tip", "scores_plot"]

_SIZE = (400.0, 240.0)
_SMALL_SIZE = (230.0, 170.0)
_STEPS = Axis("step", lambda value: f"{value:,.0f}")


def scores_plot(scores: Sequence[Evaluated]) -> Drawing:
    """Return the change of the loss over the steps, on held-out pictures and on training pictures."""
    steps, last = [score.step for score in scores], scores[-1]
    held_out, training = [score.held_out for score in scores], [score.training for score in scores]
    frame = _frame(_SIZE, steps, [*held_out, *training])
    description = (
        f"Change of the denoising loss over {len(scores)} scores, as a share of the base's. After step {last.step:,}: "
        f"{share(change(last.held_out))} on held-out pictures, {share(change(last.training))} on training pictures."
    )
    shapes = [
        *_axes_and_zero(frame),
        *_best_mark(last, frame),
        *_score_line(steps, training, frame, "second"),
        *_score_line(steps, held_out, frame, "first"),
    ]
    return Drawing(*_SIZE, description, tuple(shapes))


def band_plots(scores: Sequence[Evaluated]) -> list[tuple[str, Drawing]]:
    """Return a plot of held-out scores for each part of time, all of one scale, with the part's name.

    Scores by other parts of time than the last one's are left out: a run that is resumed may ask for more draws.
    """
    same = [score for score in scores if len(score.bands) == len(scores[-1].bands)]
    steps = [score.step for score in same]
    bands = list(zip(*(score.bands for score in same), strict=True))
    frame = _frame(_SMALL_SIZE, steps, [band.score for group in bands for band in group])
    return [(band_name(group[-1]), _band_plot(steps, group, frame)) for group in bands]


def _band_plot(steps: Sequence[int], group: Sequence[Band], frame: Frame) -> Drawing:
    end = share(change(group[-1].score))
    description = f"Change of the loss at {band_name(group[-1])}, over the steps; at the end {end}."
    scores = [band.score for band in group]
    shapes = (*_axes_and_zero(frame), *_score_line(steps, scores, frame, "first"))
    return Drawing(*_SMALL_SIZE, description, shapes)


def _frame(size: tuple[float, float], steps: Sequence[int], scores: Sequence[Score]) -> Frame:
    ends = [0.0, *(end for score in scores for end in interval_ends(score))]
    margin = 0.04 * (max(ends) - min(ends)) or 0.01
    return Frame.within(size, (0, max(steps)), (min(ends) - margin, max(ends) + margin), left=58)


def interval_ends(score: Score) -> list[float]:
    """Return what of a score must be on a plot, as shares of the base's loss: its mean and the ends of its interval."""
    return [end / score.base for end in (score.mean, score.low, score.high) if math.isfinite(end)]


def _axes_and_zero(frame: Frame) -> Iterator[Shape]:
    yield from axes(frame, _STEPS, Axis("change of the loss", _percent(frame)))
    y = frame.y(0)
    yield Rule((frame.x.start, y), (frame.x.end, y), "zero")
    yield Text((frame.x.start + 5, y - 4), "the base", "tick")


def _percent(frame: Frame) -> Callable[[float], str]:
    form = "+.0%" if frame.y.high - frame.y.low > 0.04 else "+.1%"
    return lambda value: share(value if abs(value) > 1e-9 else 0.0, form)


def _score_line(steps: Sequence[int], scores: Sequence[Score], frame: Frame, kind: str) -> Iterator[Shape]:
    """Yield a line of scores with the area of their intervals; open intervals are not drawn."""
    steps_and_scores = list(zip(steps, scores, strict=True))
    places = frame.places([(step, change(score)) for step, score in steps_and_scores])
    closed = [(step, score) for step, score in steps_and_scores if is_closed(score.low, score.high)]
    if len(closed) > 1:
        low = frame.places([(step, score.low / score.base) for step, score in closed])
        high = frame.places([(step, score.high / score.base) for step, score in closed])
        yield Area(low, high, kind)
    yield Line(places, kind)
    for place, (step, score) in zip(places, steps_and_scores, strict=True):
        yield Dot(place, kind, f"step {step:,}: {score_tip(score)}")


def score_tip(score: Score) -> str:
    """Return a score as text for a pointer."""
    return f"{share(change(score))} ({signed(score.mean)}), 95 % interval {interval_text(score.low, score.high)}"


def _best_mark(last: Evaluated, frame: Frame) -> Iterator[Shape]:
    """Yield the step of the lowest loss; its name stands where the lines, which end below or above zero, are not."""
    x = frame.x(last.best_step)
    yield Rule((x, frame.y.start), (x, frame.y.end), "best")
    y = frame.y.end + 28 if last.held_out.mean < 0 else frame.y.start - 8
    name = f"best: step {last.best_step:,}"
    if x > (frame.x.start + frame.x.end) / 2:
        yield Text((x - 5, y), name, "tick", "end")
    else:
        yield Text((x + 5, y), name, "tick")
