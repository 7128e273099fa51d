"""The report's plots: the training loss, scores on the way, scores by parts of time, intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from veneer.evaluate.results import Band, Evaluated, Evaluation, Score
from veneer.report.axes import Frame, Scale, axes, band, drawing, line, mark, place, ticks, words
from veneer.report.content import Curve, Point
from veneer.report.markup import Markup, element, joined
from veneer.report.words import change, number, plain_interval, share, signed, tone_of

__all__ = ["band_name", "bands_plots", "intervals_plot", "loss_plot", "scores_plot"]

_SIZE = (400.0, 240.0)
_SMALL = (230.0, 170.0)
_HINTS = 120
"""Places of a long curve at which a pointer is told the loss."""
_SPREAD = 0.02
"""Share of the highest and of the lowest losses that may leave the plot, so that one wild step does not flatten it."""

Place = tuple[float, float]


def loss_plot(curve: Curve) -> Markup:
    """The training loss by step, and smoothed."""
    points = [point for point in curve.points if point.loss is not None and point.smoothed is not None]
    losses = [value for point in points for value in (point.loss, point.smoothed) if value is not None]
    shown = _main_part(losses)
    frame = Frame.of(_SIZE, (0, curve.points[-1].step), shown)
    smoothed = place([(point.step, _within(point.smoothed or 0.0, frame)) for point in points], frame)
    about = (
        f"Training loss over {curve.points[-1].step:,} steps; smoothed, it ends at {number(points[-1].smoothed or 0)}."
    )
    return drawing(
        _SIZE,
        about,
        axes(frame, "step", "loss", _steps, _round(shown)),
        _raw(points, frame, curve.width),
        line(smoothed, "first"),
        *_hints(points, frame),
    )


def _main_part(values: Sequence[float]) -> tuple[float, float]:
    ranked = sorted(values)
    cut = int(_SPREAD * len(ranked))
    low, high = ranked[cut], ranked[-1 - cut]
    margin = 0.05 * (high - low)
    return max(low - margin, 0.0) if low >= 0 else low - margin, high + margin


def _raw(points: Sequence[Point], frame: Frame, width: int) -> Markup:
    """Single steps as a thin line; of several steps a point the range between the lowest and the highest."""
    if width == 1:
        return line(place([(each.step, _within(each.loss or 0.0, frame)) for each in points], frame), "raw")
    low = place([(each.step, _within(each.low or 0.0, frame)) for each in points], frame)
    return band(low, place([(each.step, _within(each.high or 0.0, frame)) for each in points], frame), "raw")


def _within(value: float, frame: Frame) -> float:
    return min(max(value, frame.y.low), frame.y.high)


def _hints(points: Sequence[Point], frame: Frame) -> list[Markup]:
    """Upright stripes that tell a pointer the loss of their steps."""
    stride = max(1, math.ceil(len(points) / _HINTS))
    wide = (frame.x.end - frame.x.start) / max(1, len(points)) * stride
    return [
        element(
            "rect",
            element(
                "title", f"step {each.step:,}: loss {number(each.loss or 0)}, smoothed {number(each.smoothed or 0)}"
            ),
            x=frame.x(each.step) - wide / 2,
            y=frame.y.end,
            width=wide,
            height=frame.y.start - frame.y.end,
            class_="find",
        )
        for each in points[::stride]
    ]


def scores_plot(scores: Sequence[Evaluated]) -> Markup:
    """The difference to the base over the steps, on held-out pictures and on those trained on."""
    kinds = [("first", [each.held_out for each in scores]), ("second", [each.training for each in scores])]
    steps = [each.step for each in scores]
    frame = _frame(_SIZE, steps, [score for _, group in kinds for score in group])
    last = scores[-1]
    about = (
        f"Change of the denoising loss over {len(scores)} scores, as a share of the base's. After step {last.step:,}: "
        f"{share(change(last.held_out))} on held-out pictures, {share(change(last.training))} on training pictures."
    )
    parts = [axes(frame, "step", "change of the loss", _steps, _percent(frame)), _zero(frame), _best(last, frame)]
    parts += [_course(steps, group, frame, kind) for kind, group in reversed(kinds)]
    return drawing(_SIZE, about, *parts)


def bands_plots(scores: Sequence[Evaluated]) -> list[Markup]:
    """The same on held-out pictures by parts of time, a plot each, all of one scale.

    Scores by other parts than the last one's are left out: a run that goes on may be asked for more draws.
    """
    alike = [each for each in scores if len(each.bands) == len(scores[-1].bands)]
    steps = [each.step for each in alike]
    bands = list(zip(*(each.bands for each in alike), strict=True))
    frame = _frame(_SMALL, steps, [each.score for group in bands for each in group])
    return [_band_plot(steps, group, frame) for group in bands]


def _band_plot(steps: Sequence[int], group: Sequence[Band], frame: Frame) -> Markup:
    name = band_name(group[-1])
    about = f"Change of the loss at {name}, over the steps; at the end {share(change(group[-1].score))}."
    grid = axes(frame, "step", "change of the loss", _steps, _percent(frame))
    return drawing(_SMALL, about, grid, _zero(frame), _course(steps, [each.score for each in group], frame, "first"))


def band_name(band: Band) -> str:
    """Such as ``time 0 to 0.25, near the clean picture``."""
    name = f"time {band.start:.2g} to {band.end:.2g}"
    if band.start == 0 and band.end < 1:
        return f"{name}, near the clean picture"
    return f"{name}, near noise" if band.end == 1 and band.start > 0 else name


def _frame(size: Place, steps: Sequence[int], scores: Sequence[Score]) -> Frame:
    ends = [0.0, *(end for score in scores for end in _ends(score))]
    margin = 0.04 * (max(ends) - min(ends)) or 0.01
    return Frame.of(size, (0, max(steps)), (min(ends) - margin, max(ends) + margin), left=58)


def _ends(score: Score) -> list[float]:
    """What of a score must be on the plot; an open interval cannot be."""
    ends = [score.mean, score.low, score.high]
    return [end / score.base for end in ends if math.isfinite(end)]


def _course(steps: Sequence[int], scores: Sequence[Score], frame: Frame, kind: str) -> Markup:
    """A line with its interval."""
    dots = place([(step, change(score)) for step, score in zip(steps, scores, strict=True)], frame)
    known = [(step, score) for step, score in zip(steps, scores, strict=True) if math.isfinite(score.high - score.low)]
    low = place([(step, score.low / score.base) for step, score in known], frame)
    high = place([(step, score.high / score.base) for step, score in known], frame)
    marks = [
        mark(x, y, kind, f"step {step:,}: {_told(score)}")
        for (x, y), step, score in zip(dots, steps, scores, strict=True)
    ]
    return joined([band(low, high, kind) if len(known) > 1 else "", line(dots, kind), *marks])


def _told(score: Score) -> str:
    return f"{share(change(score))} ({signed(score.mean)}), 95 % interval {plain_interval(score.low, score.high)}"


def _zero(frame: Frame) -> Markup:
    y = frame.y(0)
    rule = element("line", x1=frame.x.start, y1=y, x2=frame.x.end, y2=y, class_="zero")
    return joined([rule, words(frame.x.start + 5, y - 4, "the base", "tick")])


def _best(last: Evaluated, frame: Frame) -> Markup:
    """The step of the lowest loss; its name stands where the lines, which end below or above zero, are not."""
    x = frame.x(last.best_step)
    rule = element("line", x1=x, y1=frame.y.start, x2=x, y2=frame.y.end, class_="best")
    y = frame.y.end + 28 if last.held_out.mean < 0 else frame.y.start - 8
    left = x > (frame.x.start + frame.x.end) / 2
    name, at, anchor = f"best: step {last.best_step:,}", x - 5 if left else x + 5, "end" if left else "start"
    return joined([rule, words(at, y, name, "tick", anchor)])


def _steps(value: float) -> str:
    return f"{value:,.0f}"


def _round(span: tuple[float, float]) -> Callable[[float], str]:
    """As many digits as the ticks of a range differ in."""
    found = ticks(*span) if span[1] > span[0] else [span[0]]
    step = found[1] - found[0] if len(found) > 1 else abs(span[0]) or 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return lambda value: number(value, f".{digits}f")


def _percent(frame: Frame) -> Callable[[float], str]:
    return lambda value: share(
        value if abs(value) > 1e-9 else 0.0, "+.0%" if frame.y.high - frame.y.low > 0.04 else "+.1%"
    )


_ROW, _LEFT, _RIGHT = 40.0, 12.0, 328.0


def intervals_plot(evaluation: Evaluation) -> Markup | None:
    """Each kind of pictures and each band: the change as a share of the base's loss, with its interval."""
    rows = _rows(evaluation)
    if not rows:
        return None
    ends = [0.0, *(end for _, score, _ in rows for end in _ends(score))]
    margin = 0.05 * (max(ends) - min(ends)) or 0.01
    across = Scale(min(ends) - margin, max(ends) + margin, _LEFT, _RIGHT)
    bottom = _ROW * len(rows) + 8
    parts = [_upright(across, bottom)]
    parts += [
        _interval_row(name, score, tone, across, _ROW * number_) for number_, (name, score, tone) in enumerate(rows)
    ]
    about = "Change of the denoising loss with 95 % intervals. " + " ".join(
        f"{name}: {share(change(score))}." for name, score, _ in rows
    )
    return drawing((400, bottom + 38), about, *parts)


def _rows(evaluation: Evaluation) -> list[tuple[str, Score, str]]:
    rows: list[tuple[str, Score, str]] = [
        (name, score, tone_of(score)) for name, score in _kinds(evaluation) if score is not None
    ]
    # whatever changes other things is drift, in either direction
    return rows if evaluation.drift is None else [*rows, ("other things (drift)", evaluation.drift, "neutral")]


def _kinds(evaluation: Evaluation) -> list[tuple[str, Score | None]]:
    bands = [(band_name(each), each.score) for each in evaluation.bands] if len(evaluation.bands) > 1 else []
    return [("held-out pictures", evaluation.held_out), *bands, ("training pictures", evaluation.training)]


def _upright(across: Scale, bottom: float) -> Markup:
    span = across.high - across.low
    form = "+.0%" if span > 0.04 else "+.1%"
    parts: list[str] = []
    for value in ticks(across.low, across.high, 4):
        x, kind = across(value), "zero" if abs(value) < 1e-9 else "grid"
        parts.append(element("line", x1=x, y1=4, x2=x, y2=bottom, class_=kind))
        parts.append(words(x, bottom + 15, share(0.0 if kind == "zero" else value, form), "tick", "middle"))
    label = "change of the denoising loss, in percent of the base's"
    return joined([*parts, words((_LEFT + _RIGHT) / 2, bottom + 33, label, "label", "middle")])


def _interval_row(name: str, score: Score, tone: str, across: Scale, top: float) -> Markup:
    y, x = top + 29, across(change(score))
    parts: list[str] = [words(_LEFT, top + 17, name, "row")]
    if math.isfinite(score.high - score.low):
        low, high = across(score.low / score.base), across(score.high / score.base)
        parts.append(element("line", x1=low, y1=y, x2=high, y2=y, class_=f"whisker {tone}"))
    parts.append(mark(x, y, tone, f"{name}: {_told(score)}", 4.5))
    parts.append(words(396, y + 4, share(change(score)), "value", "end"))
    return element("g", *parts)
