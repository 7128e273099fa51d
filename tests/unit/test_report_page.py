"""The report's page: whole, closed to the network, escaped, legible, and of one mind with its JSON."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reports import Page, curve, evaluated, evaluation, numbers_in, report, score
from veneer.evaluate.results import Band, Evaluation, Score
from veneer.report.axes import Frame, Scale, ticks
from veneer.report.content import Course, Ending, Point, Report
from veneer.report.gather import report_json
from veneer.report.markup import Markup, element, joined
from veneer.report.page import page
from veneer.report.plots import bands_plots, intervals_plot, loss_plot, scores_plot
from veneer.report.words import ending_in_words, verdict_of_run
from veneer.train.smoothed_loss import SmoothedLoss

EVIL = "<script>alert(1)</script>\"' onload=x &amp; $title </title> é"
NOTHING = Report("run", "unmeasured", "Not known.", None, None, None, None, (), (), None, (), None, ())


@pytest.fixture(scope="module")
def whole() -> Page:
    return Page(page(report()))


def test_every_section_is_there_and_the_verdict_first(whole: Page) -> None:
    titles = [words["id"] for words in whole.of("h2")]
    assert titles == [
        f"{name}-title"
        for name in (
            *("help", "learning", "samples", "before-after", "copying"),
            *("doctor", "plan", "config", "provenance"),
        )
    ]
    assert whole.text.index("The adapter helps") < whole.text.index("Does it help?")
    for words in (
        "Memorisation gap",
        "Drift",
        "clip_text",
        "time 0 to 0.25",
        "step 100",
        "mirrored",
        "a copy?",
    ):
        assert words in whole.text, words


def test_the_page_needs_no_network_and_runs_no_script(whole: Page) -> None:
    assert {name for name, _ in whole.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "form", "base"})
    for name, attributes in whole.tags:
        assert not [key for key in attributes if key.startswith("on")], name
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"https?:|@import|url\(", page(report()).replace("http-equiv", ""))
    (policy,) = [tag["content"] for tag in whole.of("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")


@given(st.text(max_size=40))
@settings(max_examples=25)
def test_whatever_a_user_writes_is_text(word: str) -> None:
    shown = Page(page(report(word + EVIL)))
    assert not shown.of("script") and not [tag for tag in shown.tags if "onload" in tag[1]]
    assert len(shown.tags) == len(Page(page(report("x"))).tags)
    assert {image["alt"] for image in shown.of("img")} == {f"{word}{EVIL}, base"}


def test_text_is_escaped_and_markup_is_not_twice() -> None:
    inner = element("b", "1 < 2")
    assert element("p", "a & b ", inner, title='"<"') == '<p title="&quot;&lt;&quot;">a &amp; b <b>1 &lt; 2</b></p>'
    assert joined(["<", inner], "&") == "&lt;&amp;<b>1 &lt; 2</b>"
    assert isinstance(inner, Markup) and element("img", src="x", alt=None) == '<img src="x">'
    assert (
        element("line", x1=1.5, y1=2.0, x2=1 / 3, stroke_width=3)
        == '<line x1="1.5" y1="2" x2="0.33" stroke-width="3"></line>'
    )


def test_each_figure_of_the_page_is_in_the_json() -> None:
    told = report()
    known = set(numbers_in(json.loads(report_json(told))))
    shown = [float(tag["value"]) for tag in Page(page(told)).of("data")]
    # those that are counted on the page itself
    counted = {float(sum(each.level == "problem" for each in told.findings or ()))}
    assert len(shown) > 60
    assert set(shown) - counted <= known


def test_the_json_has_pictures_by_file_and_hash_alone() -> None:
    text = report_json(report())
    assert "base64" not in text and json.loads(text)["samples"]["pictures"][0][0]["file"] == "a turtle.png"
    assert json.loads(text)["evaluation"]["held_out"]["mean"] == -0.5


def test_what_is_missing_is_said_with_the_command() -> None:
    missing = {"section": "doctor", "what": "Not judged: a turtle", "how": "veneer doctor RUN --measure"}
    assert json.loads(report_json(report()))["missing"] == [missing]
    assert "Not judged: a turtle: veneer doctor RUN --measure" in Page(page(report())).text


def test_a_run_of_which_nothing_is_known_has_a_page() -> None:
    shown = Page(page(NOTHING))
    assert "Not known." in shown.text and not shown.of("svg") and not shown.of("h2")


def test_those_who_do_not_see_the_page_are_told(whole: Page) -> None:
    assert whole.of("html") == [{"lang": "en"}]
    assert all(tag["alt"] for tag in whole.of("img"))
    assert all(tag["role"] == "img" and len(tag["aria-label"]) > 30 for tag in whole.of("svg"))
    assert all(tag.get("scope") for tag in whole.of("th"))
    assert all(tag["tabindex"] == "0" and tag["aria-label"] for tag in whole.of("div") if tag.get("class") == "scroll")
    ids = [attributes["id"] for _, attributes in whole.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [tag["href"][1:] for tag in whole.of("a")]
    assert links and set(links) <= set(ids)
    levels = [int(name[1]) for name, _ in whole.tags if re.fullmatch(r"h\d", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_their_paper(scheme: int) -> None:
    style = (files("veneer.report") / "page.css").read_text("utf-8")
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", style.split("prefers-color-scheme")[scheme]))
    papers = [value for name, value in colours.items() if name.endswith("paper")] + [colours["card"]]
    assert len(papers) == 5
    for paper in papers:
        assert contrast(colours["ink"], paper) >= 7 and contrast(colours["soft"], paper) >= 4.5
    for name in ("first", "second", "good", "bad", "neutral"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name


def test_verdicts() -> None:
    def said(held_out: Score | None) -> tuple[str, str]:
        return verdict_of_run(replace(evaluation(), held_out=held_out), None)

    assert said(score(-0.5)) == (
        "good",
        "The adapter helps: on 64 pictures that training never saw, it lowers the denoising loss by 45.5\xa0% "
        "(\u22120.5000; 95\xa0% interval \u22120.5500 to \u22120.4500).",
    )
    assert said(score(0.5))[0] == "bad" and "does harm" in said(score(0.5))[1]
    assert said(score(0.0, half=0.001))[1].startswith("The adapter has no effect to speak of on 64 pictures")
    assert said(score(-0.04))[1].startswith("64 pictures are too few to tell whether")
    alone = Score(-0.5, -math.inf, math.inf, 1.0, 0.5, 1, 8, "too few pictures to tell")
    assert said(alone)[1].startswith("One picture tells nothing of others: on one picture that training")
    assert said(None)[0] == "unmeasured"
    course = Course(Ending("running", 120, 300), None, (evaluated(100, -0.5, 100),), (), 0, None, None)
    assert verdict_of_run(None, course)[1].startswith("After step 100: The adapter helps")
    assert "not known yet" in verdict_of_run(None, None)[1]


@pytest.mark.parametrize("how", ["finished", "stopped early", "stopped", "failed", "cut off", "running"])
def test_every_ending_has_words(how: Any) -> None:
    assert "300" in ending_in_words(Ending(how, 120, 300, "a fault"))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_within(low: float, width: float) -> None:
    found = ticks(low, low + width)
    margin = 1e-6 * max(abs(low), width)
    assert 1 <= len(found) <= 6 and all(low - margin <= tick <= low + width + margin for tick in found)
    gaps = {f"{(b - a) / 10 ** math.floor(math.log10(b - a) + 1e-4):.1f}" for a, b in pairwise(found)}
    assert abs(low) > 1e4 * width or gaps <= {"1.0", "2.0", "5.0"}


def test_scales_go_from_end_to_end() -> None:
    frame = Frame.of((400, 240), (0, 300), (0.5, 1.5))
    assert (frame.x(0), frame.x(300), frame.y(0.5), frame.y(1.5)) == (50, 386, 200, 12)
    assert Frame.of((400, 240), (3, 3), (0, 0)).y(0) == pytest.approx(106)  # one value has a plot as well
    assert Scale(0, 10, 5, 25)(2.5) == 10


def places(plot: str, kind: str) -> list[list[float]]:
    (path,) = re.findall(rf'<path d="M([^"]+)" class="{kind}">', plot)
    return [[float(number) for number in pair.split()] for pair in path.rstrip("Z").split("L")]


def test_the_loss_is_drawn_where_it_is() -> None:
    drawn = places(loss_plot(curve()), "line first")
    assert len(drawn) == 299  # of a step that was skipped there is none
    assert [drawn[0][0], drawn[-1][0]] == pytest.approx([50 + 336 / 300, 386], abs=0.1)
    assert [y for _, y in drawn] == sorted(y for _, y in drawn)  # it falls: on the screen y grows downwards


def test_one_wild_step_does_not_flatten_the_plot() -> None:
    tame = curve()
    smooth = SmoothedLoss(point.smoothed or 0.0 for point in tame.points[:-1])
    wild = replace(tame, points=(*tame.points[:-1], Point(300, 1e6, 1e6, 1e6, smooth.add(1e6))))
    before, after = (np.array(places(loss_plot(each), "line first")) for each in (tame, wild))
    assert np.abs(before[:-1] - after[:-1]).max() < 8
    # what is beyond the plot ends at its edge, not on the page above it
    assert after[-1, 1] == after[:, 1].min() == min(y for _, y in places(loss_plot(wild), "line raw"))
    assert after[-1, 1] >= 0


def test_steps_that_share_a_point_show_their_range() -> None:
    joined_ = replace(curve(), width=4)
    area = places(loss_plot(joined_), "area raw")
    assert len(area) == 2 * 299 and "line raw" not in loss_plot(joined_)


def test_scores_have_their_intervals_and_the_best_its_mark() -> None:
    scores = [evaluated(step, -0.5 * step / 300, 200) for step in (100, 200, 300)]
    plot = scores_plot(scores)
    assert len(places(plot, "area first")) == 6 and "best: step 200" in plot
    line_, area = places(plot, "line first"), places(plot, "area first")
    assert all(high[1] < mean[1] < low[1] for high, mean, low in zip(area[:3], line_, area[:2:-1], strict=True))
    assert "step 200: \u221230.3\xa0% (\u22120.3333), 95 % interval \u22120.3833 to \u22120.2833" in plot


def test_a_run_that_went_on_with_other_draws_shows_the_parts_of_time_that_it_has_now() -> None:
    """Eight draws fill four parts and ten fill five."""
    earlier, last = evaluated(100, -0.2, 100), evaluated(300, -0.4, 300)
    now = tuple(Band(place / 5, (place + 1) / 5, score(-0.3, base=2.0)) for place in range(5))
    scores = (earlier, replace(earlier, step=200, bands=now), replace(last, bands=now))
    assert [plot.count("dot first") for plot in bands_plots(scores)] == [2] * 5
    course = Course(Ending("finished", 300, 300), None, scores, (), 0, None, None)
    shown = Page(page(replace(report(), course=course)))
    assert "Time 0.8 to 1, near noise" in shown.text
    whole_time = replace(earlier, bands=earlier.bands[:1])
    course = replace(course, scores=(whole_time, last))
    assert "Time 0.75 to 1" in Page(page(replace(report(), course=course))).text


def test_an_open_interval_is_not_drawn() -> None:
    alone = Score(-0.5, -math.inf, math.inf, 1.0, 0.5, 1, 8, "too few pictures to tell")
    told = Evaluation("a", "b", held_out=alone)
    plot = intervals_plot(told)
    assert plot is not None and "whisker" not in plot and "dot unclear" in plot
    assert intervals_plot(Evaluation("a", "b")) is None
    shown = Page(page(replace(NOTHING, evaluation=told)))
    assert "too few pictures for an interval" in shown.text and "inf" not in shown.text.replace("information", "")


def test_every_verdict_has_a_shape_beside_its_colour() -> None:
    told = replace(evaluation(), training=score(0.5), held_out=score(-0.5), drift=score(-0.3))
    plot = intervals_plot(told)
    assert plot is not None
    assert re.findall(r'class="dot (\w+)"', plot)[0] == "good" and "dot bad" in plot
    assert plot.count("dot neutral") == 1  # drift is neither good nor bad
