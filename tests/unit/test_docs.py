"""What the documents say is what the code does."""

from __future__ import annotations

import json
import re

from tools.demo_report import __main__ as demo_report
from tools.demo_style import __main__ as style
from tools.demo_subject import __main__ as subject
from tools.publish import published
from tools.reference import __main__ as reference
from tools.reference import errors, methods
from veneer.config.keys import known_keys


def test_the_configuration_page_is_current() -> None:
    assert reference.PAGE.read_text("utf-8") == reference.page(), "run: python -m tools.reference"


def test_the_page_of_errors_is_current() -> None:
    assert errors.PAGE.read_text("utf-8") == errors.page(), "run: python -m tools.reference"


def test_the_table_of_methods_is_current() -> None:
    assert published(methods.PAGE, methods.SECTION) == methods.table(), "run: python -m tools.reference"


def test_every_code_names_a_room_and_a_problem() -> None:
    codes = {refusal.code for refusal in errors.refusals()}
    assert len(codes) > 100
    assert [code for code in codes if not re.fullmatch(r"[a-z]+(\.[a-z][a-z0-9_]+)", code)] == []


def test_every_key_is_explained() -> None:
    rows = [row.split(" | ") for row in reference.page().splitlines() if row.startswith("| `")]
    explained = {row[0].strip("| `").replace("[]", "") for row in rows if len(row) == 4 and row[3].strip(" |")}
    sections = {key for key in known_keys() if any(other.startswith(f"{key}.") for other in known_keys())}
    assert set(known_keys()) - sections <= explained


def test_readme_quotes_the_measured_figures() -> None:
    figures = json.loads(style.FIGURES.read_text())
    assert published(style.ROOT / "README.md") == style.table(figures), "run: python -m tools.demo_style runs/example"


def test_the_subject_page_quotes_the_measured_figures() -> None:
    figures = json.loads(subject.FIGURES.read_text())
    assert published(subject.PICTURE.with_suffix(".md")) == subject.table(figures), "run: python -m tools.demo_subject"


def test_the_evaluation_page_quotes_the_measured_times() -> None:
    figures = demo_report.load_figures()
    quoted = published(demo_report.PAGE, demo_report.SECTION)
    assert quoted == demo_report.table(figures), "run: python -m tools.demo_report runs/report"
    if figures:
        assert figures["equal"] and figures["pictures"] == 64
        assert max(seconds for name, seconds in figures["seconds"].items() if "alone" in name) <= 60


def test_the_demo_paints_as_the_example_does() -> None:
    example = (style.ROOT / "lora_complete_example.py").read_text("utf-8")
    assert f'{{"guidance": {style.GUIDANCE}}} if bundled' in example


def test_the_demo_meets_what_it_is_for() -> None:
    figures = json.loads(style.FIGURES.read_text())
    assert figures["score"]["high"] < 0
    assert figures["classifier"]["accuracy"] >= 0.95
    assert figures["adapter"]["openmoji"] >= 0.75
    assert figures["adapter"]["found"] >= 4 * figures["chance"]["found"]
