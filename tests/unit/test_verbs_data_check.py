"""``veneer data check``: what a training would say of its pictures, without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from veneer.cli.main import main
from veneer.config.load import config_from_folder
from veneer.verbs.data_check import check_pictures


@pytest.fixture
def pictures(tiny_pictures: Path, tmp_path: Path) -> Path:
    """Pictures of which one is broken and one is there twice."""
    folder = tmp_path / "pictures"
    shutil.copytree(tiny_pictures, folder, ignore=shutil.ignore_patterns("*.jsonl"))
    (folder / "broken.png").write_bytes(b"")
    first = sorted(folder.glob("*.png"))[1]
    shutil.copy(first, folder / "zz copy.png")
    return folder


def test_a_check_says_what_a_training_would(pictures: Path) -> None:
    found = check_pictures(config_from_folder(pictures, "tok"))
    assert (found.train, found.held_out) == (11, 1)
    assert found.rejected == {str(pictures / "broken.png"): "empty file (0 bytes)"}
    assert [second.name for _, second in found.copies] == ["zz copy.png"]


def test_it_is_a_table_or_data(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(pictures), "--trigger", "tok"]) == 0
    table = capsys.readouterr().out
    assert "11 to train on, 1 held out, 1 put aside" in table and "broken.png: empty file" in table
    assert main(["data", "check", str(pictures), "--trigger", "tok", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train"] == 11
