"""The plots of a report: axes, the training loss, scores over the steps, intervals."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reports import curve, evaluated, evaluation, score
from veneer.evaluate.results import Band, Evaluation, Score
from veneer.report.content import CurvePoint
from veneer.report.plots.axes import Frame, Scale, ticks
from veneer.report.plots.intervals import intervals_plot
from veneer.report.plots.loss import loss_plot
from veneer.report.plots.scores import band_plots, scores_plot
from veneer.report.plots.svg import Area, Dot, Drawing, Line, Rule, Shape, Text
from veneer.train.smoothed_loss import SmoothedLoss

S = TypeVar("S", bound=Shape)


def shapes(drawing: Drawing, shape: type[S]) -> list[S]:
    return [each for each in drawing.all_shapes() if isinstance(each, shape)]


def kinds(drawing: Drawing, shape: type[Shape]) -> list[str]:
    return [each.kind for each in shapes(drawing, shape)]


def line(drawing: Drawing, kind: str) -> list[tuple[float, float]]:
    (one,) = (each for each in shapes(drawing, Line) if each.kind == kind)
    return list(one.places)


def area(drawing: Drawing, kind: str) -> Area:
    (one,) = (each for each in shapes(drawing, Area) if each.kind == kind)
    return one


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_within(low: float, width: float) -> None:
    marks = ticks(low, low + width)
    margin = 1e-6 * max(abs(low), width)
    assert 1 <= len(marks) <= 6 and all(low - margin <= tick <= low + width + margin for tick in marks)
    gaps = {f"{(b - a) / 10 ** math.floor(math.log10(b - a) + 1e-4):.1f}" for a, b in pairwise(marks)}
    assert abs(low) > 1e4 * width or gaps <= {"1.0", "2.0", "5.0"}


def test_scales_go_from_end_to_end() -> None:
    frame = Frame.within((400, 240), (0, 300), (0.5, 1.5))
    assert (frame.x(0), frame.x(300), frame.y(0.5), frame.y(1.5)) == (50, 386, 200, 12)
    assert Frame.within((400, 240), (3, 3), (0, 0)).y(0) == pytest.approx(106)  # one value has a plot as well
    assert Scale(0, 10, 5, 25)(2.5) == 10


def test_the_loss_is_drawn_where_it_is() -> None:
    drawn = line(loss_plot(curve()), "first")
    assert len(drawn) == 299  # of a step that was skipped there is none
    assert [drawn[0][0], drawn[-1][0]] == pytest.approx([50 + 336 / 300, 386])
    assert [y for _, y in drawn] == sorted(y for _, y in drawn)  # it falls: on the screen y grows downwards


def test_one_wild_step_does_not_flatten_the_plot() -> None:
    tame = curve()
    smooth = SmoothedLoss(point.smoothed or 0.0 for point in tame.points[:-1])
    wild = replace(tame, points=(*tame.points[:-1], CurvePoint(300, 1e6, 1e6, 1e6, smooth.add(1e6))))
    before, after = (np.array(line(loss_plot(each), "first")) for each in (tame, wild))
    assert np.abs(before[:-1] - after[:-1]).max() < 8
    # what is beyond the plot ends at its edge, not on the page above it
    assert after[-1, 1] == after[:, 1].min() == min(y for _, y in line(loss_plot(wild), "raw"))
    assert after[-1, 1] >= 0


def test_steps_that_share_a_point_show_their_range() -> None:
    plot = loss_plot(replace(curve(), steps_per_point=4))
    assert len(area(plot, "raw").outline) == 2 * 299 and "raw" not in kinds(plot, Line)


def test_scores_have_their_intervals_and_the_best_its_mark() -> None:
    plot = scores_plot([evaluated(step, -0.5 * step / 300, 200) for step in (100, 200, 300)])
    mean, around = line(plot, "first"), area(plot, "first")
    assert len(around.outline) == 6 and "best: step 200" in [text.text for text in shapes(plot, Text)]
    ends = zip(around.high, mean, around.low, strict=True)
    assert all(high[1] < middle[1] < low[1] for high, middle, low in ends)
    tips = [dot.tip for dot in shapes(plot, Dot)]
    assert "step 200: \u221230.3\xa0% (\u22120.3333), 95 % interval \u22120.3833 to \u22120.2833" in tips


def test_a_run_that_went_on_with_other_draws_shows_the_parts_of_time_that_it_has_now() -> None:
    """Eight draws fill four parts and ten fill five."""
    earlier, last = evaluated(100, -0.2, 100), evaluated(300, -0.4, 300)
    now = tuple(Band(place / 5, (place + 1) / 5, score(-0.3, base=2.0)) for place in range(5))
    plots = band_plots((earlier, replace(earlier, step=200, bands=now), replace(last, bands=now)))
    assert [kinds(plot, Dot).count("first") for _, plot in plots] == [2] * 5
    assert plots[-1][0] == "time 0.8 to 1, near noise"
    whole_time = replace(earlier, bands=earlier.bands[:1])
    assert [name for name, _ in band_plots((whole_time, last))][-1].startswith("time 0.75 to 1")


def test_an_open_interval_is_not_drawn() -> None:
    alone = Score(-0.5, -math.inf, math.inf, 1.0, 0.5, 1, 8, "too few pictures to tell")
    plot = intervals_plot(Evaluation("a", "b", held_out=alone))
    assert plot is not None and not [kind for kind in kinds(plot, Rule) if "whisker" in kind]
    assert kinds(plot, Dot) == ["unclear"]
    assert intervals_plot(Evaluation("a", "b")) is None


def test_every_verdict_has_a_shape_beside_its_colour() -> None:
    plot = intervals_plot(replace(evaluation(), training=score(0.5), held_out=score(-0.5), drift=score(-0.3)))
    assert plot is not None
    dots = kinds(plot, Dot)
    assert dots[0] == "good" and "bad" in dots
    assert dots.count("neutral") == 1  # drift is neither good nor bad
