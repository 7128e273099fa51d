"""A measured step beside the planned one."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.errors import raises_code
from tests.training import tiny_config
from veneer.plan import probe as module
from veneer.plan.assessment import assess_config
from veneer.plan.memory import ENCODING, LOADING, STEP, Memory, Phase
from veneer.plan.probe import Probe, probe

MB = 10**6
MEMORY = Memory(
    "cpu",
    (Phase(LOADING, 0, {}, 600 * MB), Phase(ENCODING, 0, {}, 620 * MB), Phase(STEP, 0, {}, 700 * MB)),
    None,
    before=500 * MB,
)
FOUND = Probe(510 * MB, {LOADING: 100 * MB, ENCODING: 125 * MB, STEP: 190 * MB}, 0.5)


def test_measured_stands_beside_planned() -> None:
    rows = [line.split() for line in FOUND.beside(MEMORY).splitlines()]
    assert rows[0] == ["probe", "measured", "planned", "error"]
    assert rows[1][-5:] == ["100", "MB", "100", "MB", "+0.0%"]
    assert rows[3][-5:] == ["190", "MB", "200", "MB", "+5.3%"]
    assert rows[4] == ["peak", *rows[3][-5:]]
    assert rows[5][-5:] == ["700", "MB", "700", "MB", "+0.0%"]


@pytest.mark.slow
def test_what_is_probed_is_the_run(tiny_base: Path, tiny_pictures: Path) -> None:
    """In a process of its own, with the very configuration."""
    config = tiny_config(tiny_pictures, base=str(tiny_base))
    found = probe(config)
    assert list(found.peaks) == [LOADING, ENCODING, STEP]
    assert found.before > 100 * MB and 0 < found.peak < 100 * MB and 0 < found.seconds < 60
    memory = assess_config(config, count_pictures=True, limit=None).plan.memory
    assert memory is not None and found.beside(memory).count("\n") == 5


def _ended(monkeypatch: pytest.MonkeyPatch, code: int, out: str = "", err: str = "") -> None:
    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], code, out, err)

    monkeypatch.setattr(module.subprocess, "run", run)


def test_the_runs_refusal_is_the_probes(tiny_pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"what": "17 is not a multiple of 8", "code": "config.x", "where": "data.resolution", "remedy": None}
    _ended(monkeypatch, 2, json.dumps({"error": error}))
    with raises_code("config.x") as caught:
        probe(tiny_config(tiny_pictures))
    assert str(caught.value) == "data.resolution: 17 is not a multiple of 8"


def test_a_probe_that_was_killed_says_so(tiny_pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ended(monkeypatch, -9, "", "Killed\n")
    with raises_code("plan.probe_crashed") as caught:
        probe(tiny_config(tiny_pictures))
    assert str(caught.value) == "the probe: ended with code -9: Killed; the plan says what it would have needed"


def test_the_process_tells_a_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path / "nothing")
    monkeypatch.setattr("sys.stdin", io.StringIO(config.model_dump_json()))
    assert module.main() == 2
    assert "nothing" in json.loads(capsys.readouterr().out)["error"]["where"]
