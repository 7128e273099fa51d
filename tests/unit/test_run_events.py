"""Every event that a run tells comes into its log, and docs/events.md knows its kind."""

from __future__ import annotations

import ast
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.running import killed, logged, quick_config, record_events, use_base
from tools.reference import events as reference
from veneer.family.registry import load_family
from veneer.run.events import EVENTS
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.run.signals import Interrupted
from veneer.train.events import StepDone, Warned

SOURCE = Path(__file__).parents[2] / "src" / "veneer"
EMITTERS = {"emit", "_emit", "callback", "_callback"}


def events_emitted_in(path: Path) -> set[str]:
    """Names of the classes whose objects a module makes and emits, or yields as a training loop does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        made = None
        if isinstance(node, ast.Yield) and path.parent.name == "train":
            made = node.value
        elif isinstance(node, ast.Call) and _name(node.func) in EMITTERS and node.args:
            made = node.args[0]
        if isinstance(made, ast.Call) and _name(made.func)[:1].isupper():
            names.add(_name(made.func))
    return names


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_every_kind_that_the_code_emits_is_listed() -> None:
    paths = [*(SOURCE / "run").rglob("*.py"), SOURCE / "train" / "loop.py"]
    found = set().union(*map(events_emitted_in, paths))
    listed = {kind.__name__ for kind in EVENTS}
    # the search finds what there is
    assert {"SamplesSaved", "TrackingStarted", "Warned", "StepDone", "CheckpointSaved"} <= found
    assert found <= listed
    assert all(is_dataclass(kind) for kind in EVENTS)


def test_the_page_is_current() -> None:
    assert reference.PAGE.read_text("utf-8") == reference.page(), "run: python -m tools.reference"


@pytest.fixture
def config(tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    family = load_family(str(tiny_base))
    use_base(monkeypatch, family)
    sections: dict[str, Any] = {
        "data": {"prior": {"prompt": "a shape", "count": 2}},
        "train": {"checkpoint_every": 2},
        "tracking": {"trackers": None},
        "sample": {"every": 3, "prompts": ["a cross", "a shape far longer than the encoder reads"]},
    }
    return quick_config(tiny_base, tiny_pictures, tmp_path / "run", **sections)


def test_a_run_with_everything_logs_what_it_tells(config: Any) -> None:
    events = record_events(config)
    lines = logged(config.output.dir)
    assert [line["event"] for line in lines] == [type(event).__name__ for event in events]
    kinds = {kind.__name__: kind for kind in EVENTS}
    for line in lines:
        names = {field.name for field in fields(kinds[line["event"]]) if field.repr}
        assert line.keys() == {"event", "seconds"} | names
    assert {"PriorSamplingStarted", "Warned", "TrackingStarted", "SamplesSaved", "Score"} <= {
        line["event"] for line in lines
    }


def test_a_run_that_goes_on_and_is_stopped_logs_that(config: Any) -> None:
    def stop(event: object) -> None:
        if isinstance(event, StepDone):
            raise Interrupted(2, event.step)

    killed(config, StepDone, 3)
    with pytest.raises(Interrupted):
        run_training(config, resume=Resume(), callback=stop)
    names = [line["event"] for line in logged(config.output.dir)]
    assert names.count("Resumed") == 1 and names.count("TrackingStarted") == 2
    assert [json.loads(line)["step"] for line in _lines(config, "StepDone")] == [1, 2, 3]
    assert Warned.__name__ in names


def _lines(config: Any, kind: str) -> list[str]:
    lines = (config.output.dir / "run.jsonl").read_text("utf-8").splitlines()
    return [line for line in lines if json.loads(line)["event"] == kind]
