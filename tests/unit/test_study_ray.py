"""A study's trials given to Ray, which is a stand-in of its documented interface."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.errors import raises_code
from tests.fakes.ray import FakeRay
from tests.studies import EventRecorder, draw_adapter, lighten
from veneer.cli.terminal.study import run_study_in_terminal
from veneer.study import trial as trials
from veneer.study.config import Study, build_study
from veneer.study.ray import need_ray, rungs
from veneer.study.results import TrialFinished
from veneer.study.run import run_study


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    lighten(monkeypatch)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters are drawn, not trained."""
    monkeypatch.setattr(trials, "train_trial", draw_adapter)


@pytest.fixture
def run(tiny_base: Path, tiny_pictures: Path) -> dict[str, Any]:
    return {
        "base": str(tiny_base),
        "data": {"sources": [{"path": str(tiny_pictures)}], "held_out": 0.25},
        "train": {"max_steps": 9, "batch_size": 1, "learning_rate": 0.02},
        "validation": {"draws": 1},
    }


def grid_of(run: dict[str, Any]) -> Study:
    return build_study({"run": run, "seeds": [0, 1], "grid": {"adapter.rank": [1, 2]}}, "test")


def search_of(run: dict[str, Any], trials: int, seeds: list[int]) -> Study:
    space = {"adapter.rank": {"low": 1, "high": 4}, "adapter.target_modules": [["to_q"], ["to_q", "to_v"]]}
    return build_study({"run": run, "seeds": seeds, "search": {"trials": trials, "space": space}}, "test")


@pytest.mark.usefixtures("drawn")
def test_a_grid_comes_to_what_it_comes_to_here(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run_study(grid_of(run), tmp_path / "here").table
    with monkeypatch.context() as patch:
        ray = FakeRay(patch)
        there = run_study(grid_of(run), tmp_path / "there", on="ray").table
    assert [row.losses for row in there.rows] == [row.losses for row in here.rows]
    assert [report["step"] for report in ray.reports] == [9] * 4  # each is trained whole
    assert not ray.running and ray.needs == {"cpu": 1}
    assert Path(ray.config.storage_path) == tmp_path / "there" and ray.config.failure_config.max_failures == 1


@pytest.mark.usefixtures("drawn")
def test_a_gpu_goes_to_each_trial_where_there_are_any(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay(monkeypatch, gpus=8)
    run_study(build_study({"run": run, "seeds": [0], "grid": {"adapter.rank": [1]}}, "test"), tmp_path, on="ray")
    assert ray.needs == {"cpu": 1, "gpu": 1}


@pytest.mark.usefixtures("drawn")
def test_what_is_done_is_not_given_away_and_a_fault_is_named(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray, train = FakeRay(monkeypatch), trials.train_trial

    def fail(inputs: Any, *arguments: Any) -> Any:
        if inputs.run.config.adapter.rank == 2:
            raise RuntimeError("CUDA out of memory")
        return train(inputs, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trials, "train_trial", fail)
        table = run_study(grid_of(run), tmp_path, on="ray").table
    assert [row.point for row in table.rows] == ["rank 1"]
    assert [(each.point, each.reason) for each in table.failures] == [
        ("rank 2", "RuntimeError: CUDA out of memory")
    ] * 2
    ray.reports.clear()
    recorder = EventRecorder()
    table = run_study(grid_of(run), tmp_path, on="ray", callback=recorder).table
    assert len(ray.reports) == 2 and not table.failures and len(table.rows) == 2
    assert [event.cached for event in recorder.of_type(TrialFinished)] == [True, True, False, False]


def test_a_search_reports_at_its_rungs_and_trains_all_seeds_of_what_is_not_stopped(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def stops(told: Any) -> bool:
        seen.append(told["step"])
        return len(seen) > 3 and told["step"] == 3  # the first proposal runs to its end, the second does not

    ray = FakeRay(monkeypatch, stops)
    table = run_study(search_of(run, 2, [0, 1]), tmp_path, on="ray").table
    assert [report["step"] for report in ray.reports] == [1, 3, 9, 1, 3]
    (row,) = table.rows
    assert set(row.losses) == {0, 1} and ray.reports[2]["loss"] == pytest.approx(row.loss)
    assert len({report["loss"] for report in ray.reports[:3]}) == 3  # each time of the adapter as it is then
    (stopped,) = table.stopped
    assert str(stopped).startswith("stopped early after 3 of 9 steps, at a loss of 1.") and not table.failures
    assert f"- {stopped.point}, seed 0: {stopped}" in (tmp_path / "study.md").read_text("utf-8")


def test_what_was_stopped_early_is_known_to_the_same_command(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of two proposals is stopped: all is as it should be, and there is nothing left to do."""
    ray = FakeRay(monkeypatch, lambda told: len(ray.reports) > 3 and told["step"] == 3)
    assert run_study_in_terminal(search_of(run, 2, [0]), tmp_path, "ray")
    assert [report["step"] for report in ray.reports] == [1, 3, 9, 1, 3]
    loss, told = ray.reports[-1]["loss"], capsys.readouterr().out
    assert (
        f"seed 0: stopped early after 3 of 9 steps, at a loss of {loss:.4f}\n" in told and "came to nothing" not in told
    )
    before = (tmp_path / "study.json").read_bytes()
    ray.reports.clear()
    assert run_study_in_terminal(search_of(run, 2, [0]), tmp_path, "ray")
    assert not ray.reports and (tmp_path / "study.json").read_bytes() == before
    assert f"at a loss of {loss:.4f} (done before)" in capsys.readouterr().out


@pytest.mark.slow
def test_the_sampler_is_told_what_it_had_learned_of_what_was_stopped(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay(monkeypatch, lambda told: len(ray.reports) > 3 and told["step"] == 3)
    run_study(search_of(run, 2, [0]), tmp_path, on="ray")
    losses = {ray.reports[2]["loss"], ray.reports[4]["loss"]}
    ray.reports.clear()
    table = run_study(search_of(run, 3, [0]), tmp_path, on="ray").table
    values = {trial.value for trial in ray.study.trials[:2]}
    assert values == losses and len(ray.study.trials) == 3
    assert len(table.rows) + len(table.stopped) == 3


@pytest.mark.usefixtures("drawn")
def test_a_search_goes_on_with_new_proposals(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay(monkeypatch)
    first = run_study(search_of(run, 2, [0]), tmp_path, on="ray").table
    ray.reports.clear()
    again = run_study(search_of(run, 4, [0]), tmp_path, on="ray").table
    assert {row.point for row in first.rows} < {row.point for row in again.rows}
    assert sum(report["step"] == 9 for report in ray.reports) == 2
    ray.reports.clear()
    run_study(search_of(run, len(again.rows), [0]), tmp_path, on="ray")
    assert not ray.reports


@pytest.mark.usefixtures("drawn")
def test_a_proposal_that_cannot_be_trained_is_named(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeRay(monkeypatch)
    space = {"adapter.rank": [1, 640]}
    study = build_study({"run": run, "seeds": [0], "search": {"trials": 6, "space": space}}, "test")
    table = run_study(study, tmp_path, on="ray").table
    assert [row.point for row in table.rows] == ["rank 1"]
    assert table.failures[0].point == "rank 640" and "larger than the matrix" in table.failures[0].reason


@pytest.mark.parametrize(("steps", "marks"), [(300, (33, 99)), (9, (1, 3)), (3, (1,)), (1, ())])
def test_rungs(steps: int, marks: tuple[int, ...]) -> None:
    assert rungs(steps) == marks


def test_without_ray_it_is_said_what_to_install(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    recorder = EventRecorder()
    with raises_code("study.ray_missing") as caught:
        run_study(grid_of(run), tmp_path, on="ray", callback=recorder)
    caught.match(r"pip install 'veneer\[ray\]'")
    assert not recorder.events  # before the pictures are read


def test_ctrl_c_is_left_to_us(run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own handler would let what was cut end as if its scheduler had stopped it."""
    monkeypatch.delenv("TUNE_DISABLE_SIGINT_HANDLER", raising=False)
    FakeRay(monkeypatch)
    need_ray()
    assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
