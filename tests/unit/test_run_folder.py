"""The folder of a run: made before anything takes long, and taken away again if nothing came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.errors import raises_code
from tests.running import quick_config, use_base
from veneer.errors import UserError
from veneer.family.protocol import Family
from veneer.run.folder import writable
from veneer.run.session import run_training


def refuse(*_: Any, **__: Any) -> Any:
    raise UserError("does not fit", code="plan.does_not_fit")


def test_what_was_made_goes_if_an_error_leaves_it_empty(tmp_path: Path) -> None:
    with raises_code("plan.does_not_fit"), writable(tmp_path / "runs" / "one", "choose another"):
        assert (tmp_path / "runs" / "one").is_dir()
        refuse()
    assert not list(tmp_path.iterdir())


def test_what_was_there_or_has_something_in_it_stays(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with raises_code("plan.does_not_fit"), writable(tmp_path / "runs", "choose another"):
        refuse()
    with raises_code("plan.does_not_fit"), writable(tmp_path / "runs" / "a" / "b", "choose another"):
        (tmp_path / "runs" / "a" / "log").touch()
        refuse()
    assert [place.name for place in (tmp_path / "runs").rglob("*")] == ["a", "log"]


def test_what_was_made_stays_if_all_goes_well(tmp_path: Path) -> None:
    with writable(tmp_path / "runs" / "one", "choose another"):
        pass
    assert not list((tmp_path / "runs" / "one").iterdir())


@pytest.mark.parametrize("refused_for", ["pictures", "base", "plan"])
def test_a_run_that_is_refused_leaves_nothing(
    refused_for: str,
    family: Family,
    tiny_base: Path,
    tiny_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pictures = tiny_pictures
    if refused_for == "base":
        monkeypatch.setattr("veneer.run.preparation.load_run_base", refuse)
    else:
        use_base(monkeypatch, family)
    if refused_for == "plan":
        monkeypatch.setattr("veneer.run.session.assess_run", refuse)
    if refused_for == "pictures":
        pictures = tmp_path / "pictures"
        pictures.mkdir()
    config = quick_config(tiny_base, pictures, tmp_path / "runs" / "one")
    with pytest.raises(UserError):
        run_training(config)
    assert not (tmp_path / "runs").exists()
