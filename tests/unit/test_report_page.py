"""The report's page: whole, closed to the network, escaped, legible, and of one mind with its JSON."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reports import Page, numbers_in, report
from veneer.evaluate.results import Evaluation, Score
from veneer.printable import printable
from veneer.report.build import report_json
from veneer.report.content import Report
from veneer.report.page import render_page, templates

EVIL = "<script>alert(1)</script>\"' onload=x &amp; {{ 7 * 7 }} {% raw %} </title></style> é"
HARMLESS = Page(render_page(report("x")))
NOTHING = Report("run", "unmeasured", "Not known.", None, None, None, None, (), (), None, (), None, ())


@pytest.fixture(scope="module")
def whole() -> Page:
    return Page(render_page(report()))


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
        "65% [50, 75] of the adapter's",
        "Of what the base paints right, 70% [55, 80] is kept: lost.",
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
    assert not re.search(r"https?:|@import|url\(", render_page(report()).replace("http-equiv", ""))
    (policy,) = [tag["content"] for tag in whole.of("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")


@given(st.text(max_size=40))
@settings(max_examples=25)
def test_whatever_a_user_writes_is_text(word: str) -> None:
    hostile = Page(render_page(report(word + EVIL)))
    assert hostile.structure == HARMLESS.structure
    assert {image["alt"] for image in hostile.of("img")} == {printable(f"{word}{EVIL}, base")}
    # a user's words stand in every place as they are, but in an override, which quotes them
    places = len(re.findall(r"\bx\b", HARMLESS.text)) - 1
    assert hostile.text.count(" ".join(EVIL.split())) == places


def test_no_template_trusts_what_it_is_given() -> None:
    environment = templates()
    assert environment.autoescape is True
    for name in environment.list_templates():
        source = (files("veneer.report") / "templates" / name).read_text("utf-8")
        assert not re.search(r"\|\s*safe|autoescape|Markup|xmlattr|urlize", source), name


def test_a_template_escapes_text_once() -> None:
    render = templates().from_string
    assert render("<p>{{ word }}</p>").render(word='a & "b"') == "<p>a &amp; &#34;b&#34;</p>"
    once = """{% import "macros.html" as m %}{{ m.figure(1.5, word) }}"""
    assert render(once).render(word="<b>") == '<data value="1.5">&lt;b&gt;</data>'


def test_coordinates_have_few_digits() -> None:
    assert [templates().filters["coordinate"](value) for value in (1.5, 2.0, 1 / 3, 100)] == ["1.5", "2", "0.33", "100"]


def test_each_figure_of_the_page_is_in_the_json() -> None:
    full = report()
    numbers = set(numbers_in(json.loads(report_json(full))))
    figures = [float(tag["value"]) for tag in Page(render_page(full)).of("data")]
    # those that are counted on the page itself
    counted = {float(sum(each.level == "problem" for each in full.findings or ()))}
    assert len(figures) > 60
    assert set(figures) - counted <= numbers


def test_the_json_has_pictures_by_file_and_hash_alone() -> None:
    text = report_json(report())
    assert "base64" not in text and json.loads(text)["samples"]["pictures"][0][0]["file"] == "a turtle.png"
    assert json.loads(text)["evaluation"]["held_out"]["mean"] == -0.5


def test_what_is_missing_is_said_with_the_command() -> None:
    missing = {"section": "doctor", "what": "Not judged: a turtle", "how": "veneer doctor a turtle --measure"}
    assert json.loads(report_json(report()))["missing"] == [missing]
    assert "Not judged: a turtle: veneer doctor a turtle --measure" in Page(render_page(report())).text


def test_a_run_of_which_nothing_is_known_has_a_page() -> None:
    page = Page(render_page(NOTHING))
    assert "Not known." in page.text and not page.of("svg") and not page.of("h2")


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
    style = (files("veneer.report") / "templates" / "page.css").read_text("utf-8")
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", style.split("prefers-color-scheme")[scheme]))
    papers = [value for name, value in colours.items() if name.endswith("paper")] + [colours["card"]]
    assert len(papers) == 5
    for paper in papers:
        assert contrast(colours["ink"], paper) >= 7 and contrast(colours["soft"], paper) >= 4.5
    for name in ("first", "second", "good", "bad", "neutral"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name


def test_an_open_interval_is_told_in_words() -> None:
    alone = Score(-0.5, -math.inf, math.inf, 1.0, 0.5, 1, 8, "too few pictures to tell")
    page = Page(render_page(replace(NOTHING, evaluation=Evaluation("a", "b", held_out=alone))))
    assert "too few pictures for an interval" in page.text and "inf" not in page.text.replace("information", "")
