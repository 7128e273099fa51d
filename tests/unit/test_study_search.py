"""Searches: what Optuna proposes, and how an interrupted search goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.errors import raises_code
from tests.studies import EventRecorder, draw_adapter, lighten
from veneer.rng import MAX_SEED
from veneer.run.signals import Interrupted
from veneer.study import trial as trials
from veneer.study.config import SearchConfig, Study, build_study
from veneer.study.results import TrialFinished, TrialStarted
from veneer.study.run import run_study
from veneer.study.search import Proposer, changes_of, params_of, space_of

SPACE: dict[str, Any] = {
    "adapter.rank": {"low": 1, "high": 4},
    "adapter.target_modules": [["to_q"], ["to_q", "to_v"]],
    "train.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
}


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search asks what is trained, not how: adapters are drawn."""
    lighten(monkeypatch)
    monkeypatch.setattr(trials, "train_trial", draw_adapter)


def search(**more: Any) -> SearchConfig:
    return SearchConfig.model_validate({"space": SPACE, **more})


def propose(seed: int, count: int = 12) -> list[dict[str, Any]]:
    """Proposals where a high rank is good."""
    proposer, found = Proposer(search(), seed), []
    for _ in range(count):
        asked, changes = proposer.ask()
        proposer.report(asked, 10.0 - changes["adapter.rank"] if changes["adapter.rank"] > 1 else None)
        found.append(changes)
    return found


def test_proposals_lie_in_the_space_and_repeat() -> None:
    found = propose(0, 40)
    assert {changes["adapter.rank"] for changes in found} <= {1, 2, 3, 4}
    assert {json.dumps(changes["adapter.target_modules"]) for changes in found} == {'["to_q"]', '["to_q", "to_v"]'}
    assert all(1e-3 <= changes["train.learning_rate"] <= 1e-1 for changes in found)
    assert found[:12] == propose(0) != propose(1)


def test_any_seed_that_a_run_may_have_proposes() -> None:
    assert propose(MAX_SEED, 2)


def test_proposals_learn_from_what_they_are_told() -> None:
    found = [changes["adapter.rank"] for changes in propose(0, 60)]
    assert sum(found[40:]) / 20 > sum(found[:10]) / 10 + 0.5


def test_changes_and_parameters_stand_for_each_other() -> None:
    space = space_of(search())
    changes = {"adapter.rank": 3, "adapter.target_modules": ["to_q"], "train.learning_rate": 0.01}
    params = params_of(changes, space)
    assert params is not None and changes_of(params) == changes
    assert params_of({**changes, "adapter.rank": 9}, space) is None
    assert params_of({**changes, "adapter.target_modules": ["to_k"]}, space) is None
    assert params_of({"adapter.rank": 3}, space) is None


def test_without_optuna_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with raises_code("study.optuna_missing") as caught:
        space_of(search())
    caught.match(r"pip install 'veneer\[search\]'")


def test_a_search_without_optuna_is_refused_before_the_pictures_are_read(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, recorder = study_of(tiny_base, tiny_pictures, SPACE, 5), EventRecorder()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with raises_code("study.optuna_missing"):
        run_study(study, tmp_path, callback=recorder)
    assert not recorder.events


def study_of(base: Path, pictures: Path, space: dict[str, Any], trials: int) -> Study:
    run = {
        "base": str(base),
        "data": {"sources": [{"path": str(pictures)}], "held_out": 0.25},
        "train": {"max_steps": 2, "batch_size": 1},
        "validation": {"draws": 1},
    }
    return build_study({"run": run, "seeds": [0], "search": {"trials": trials, "space": space}}, "test")


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(
    tiny_base: Path, tiny_pictures: Path, tmp_path: Path
) -> None:
    space = {"adapter.rank": [1, 640, 641], "train.learning_rate": {"low": 1e-3, "high": 1e-1}}
    study = study_of(tiny_base, tiny_pictures, space, 5)
    whole = EventRecorder()
    table = run_study(study, tmp_path / "whole", callback=whole).table
    # a rank beyond the matrix is a proposal that came to nothing, and the search goes on
    assert {event.reason is None for event in whole.of_type(TrialFinished)} == {True, False}
    assert table.reference is not None and table.reference == table.advice.best  # type: ignore[union-attr]

    def stop(event: object) -> None:
        if isinstance(event, TrialFinished) and event.loss is not None:
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        run_study(study, tmp_path / "cut", callback=stop)
    again = EventRecorder()
    assert run_study(study, tmp_path / "cut", callback=again).table.rows[0].losses == table.rows[0].losses
    assert len(again.of_type(TrialStarted)) == len(whole.of_type(TrialStarted)) - 1
    named = [[(event.point, event.loss) for event in recorder.of_type(TrialFinished)] for recorder in (whole, again)]
    assert named[0] == named[1]


def test_what_is_proposed_twice_is_trained_once(tiny_base: Path, tiny_pictures: Path, tmp_path: Path) -> None:
    recorder = EventRecorder()
    table = run_study(study_of(tiny_base, tiny_pictures, {"adapter.rank": [1]}, 3), tmp_path, callback=recorder).table
    assert len(recorder.of_type(TrialStarted)) == len(table.rows) == 1
