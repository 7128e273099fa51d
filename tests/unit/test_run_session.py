"""A training's plan as its session uses it: said, written down, and warned of."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.running import quick_config, record_events, use_base
from veneer.family.protocol import Family
from veneer.plan.parameters import plan_parameters
from veneer.run.events import Planned
from veneer.run.folder import PLAN
from veneer.train.events import StepDone, Warned


@pytest.mark.parametrize("warning", [None, "900 MB are needed, and 500 MB are free"])
def test_a_run_is_planned_before_its_first_step_and_warned_of(
    warning: str | None,
    family: Family,
    tiny_base: Path,
    tiny_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_base(monkeypatch, family)

    def assess(config: Any, base: Any, dataset: Any, metadata: Any) -> SimpleNamespace:
        return SimpleNamespace(plan=plan_parameters(config, base, metadata), warning=warning)

    monkeypatch.setattr("veneer.run.session.assess_run", assess)
    config = quick_config(tiny_base, tiny_pictures, tmp_path / "run", train={"max_steps": 1})
    events = record_events(config)
    texts = [event.text for event in events if isinstance(event, Warned) and event.code == "plan.does_not_fit"]
    assert texts == ([] if warning is None else [warning])
    kinds = [type(event) for event in events]
    assert kinds.index(Planned) < kinds.index(StepDone)
    (planned,) = (event for event in events if isinstance(event, Planned))
    assert json.loads((config.output.dir / PLAN).read_text("utf-8")) == json.loads(json.dumps(planned.plan.as_dict()))


def test_a_run_is_assessed_by_a_rehearsal(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_base(monkeypatch, family, rehearse=True)
    events = record_events(quick_config(tiny_base, tiny_pictures, tmp_path / "run", train={"max_steps": 1}))
    (planned,) = (event for event in events if isinstance(event, Planned))
    assert planned.plan.memory is not None and planned.plan.memory.peak > 0
