"""How near the plan comes, as it was measured."""

from __future__ import annotations

import json
from pathlib import Path

from tools.plan_accuracy.__main__ import FIGURES, PAGE, cases, error, table
from tools.publish import published


def test_the_page_has_the_measured_figures() -> None:
    assert published(PAGE) == table(json.loads(FIGURES.read_text())), "run: python -m tools.plan_accuracy"


def test_all_cases_were_measured() -> None:
    bases = {"bundled base": ("bundled", 64), "SD 1.5": ("sd15", 256)}
    names = [name for name, _ in cases(bases, Path("pictures"))]
    assert list(json.loads(FIGURES.read_text())["cases"]) == names
    assert len(names) == 8


def test_the_error_is_the_planned_over_the_measured_peak() -> None:
    of = {"planned": {"loading": 80, "step": 105}, "measured": {"loading": 90, "step": 100}}
    assert error(of) == 0.05 or abs(error(of) - 0.05) < 1e-12


def test_the_whole_process_is_planned_within_five_percent() -> None:
    for name, of in json.loads(FIGURES.read_text())["cases"].items():
        assert abs(error(of, of["before"])) <= 0.05, name
