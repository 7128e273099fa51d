"""A folder that is no base is called what it is, and the one that was probably meant is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.errors import raises_code
from veneer.cli.main import main
from veneer.config.load import write_config
from veneer.family.other_folder import near_names
from veneer.family.registry import load_family

FOLDERS: dict[str, tuple[Callable[[Path], str], str, str]] = {
    # what is made in an empty folder and given, what it is, what to give
    "empty": (lambda top: "", "is an empty folder", "give the folder that the base was downloaded to"),
    "one part": (lambda top: "base/unet", "is one part of a base, its unet", "give the folder above: {top}/base"),
    "one level up": (lambda top: "above", "holds no model_index.json", "give {top}/above/base"),
    "the hub's cache": (
        lambda top: "models--a--b",
        "holds no model_index.json",
        "the base lies further down: give {top}/models--a--b/snapshots/0123",
    ),
    "no index": (
        lambda top: "lost",
        "holds no model_index.json, which says what its unet and vae are parts of",
        "fetch it again",
    ),
    "an adapter": (lambda top: "adapter", "holds an adapter, not a base", "give the base that it was trained on"),
    "a checkpoint": (lambda top: "files", "but model.safetensors", "give the file, if it is the base: {top}/files"),
    "one network": (lambda top: "network", "holds no model_index.json: it is a single network", "of the whole base"),
    "a link to nothing": (lambda top: "linked", "has a model_index.json that is not there", "fetch it again"),
}


@pytest.fixture
def top(tiny_base: Path, tmp_path: Path) -> Path:
    for name in ("base", "above/base", "models--a--b/snapshots/0123", "lost"):
        shutil.copytree(tiny_base, tmp_path / name)
    (tmp_path / "lost" / "model_index.json").unlink()
    for name in ("adapter/adapter_config.json", "files/model.safetensors", "network/config.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "model_index.json").symlink_to("gone")
    return tmp_path


@pytest.mark.parametrize("case", FOLDERS)
def test_the_folder_that_was_meant_is_named(case: str, top: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    make, what, remedy = FOLDERS[case]
    given = top / make(top) if make(top) else tmp_path_factory.mktemp("empty")
    with raises_code("base.not_found") as caught:
        load_family(str(given))
    assert str(given) in str(caught.value) and what in str(caught.value)
    assert remedy.format(top=top) in (caught.value.remedy or "")


def test_a_name_that_is_almost_there_is_offered(tmp_path: Path) -> None:
    (tmp_path / "Realistic-Vision").mkdir()
    assert near_names(tmp_path / "realistic_vision") == [str(tmp_path / "Realistic-Vision")]
    assert near_names(tmp_path / "flux") == [] and near_names(tmp_path / "no" / "such") == []
    with raises_code("base.not_found", f"did you mean {tmp_path / 'Realistic-Vision'}?"):
        load_family(str(tmp_path / "realistic_vision"))


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_of_the_command_line_there_is_one_line(
    verb: str, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.running import quick_config

    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = json.loads((base / "unet" / "config.json").read_text())
    (base / "unet" / "config.json").write_text(json.dumps({**config, "attention_head_dim": 0}))
    write_config(quick_config(base, tiny_pictures, tmp_path / "run"), tmp_path / "run.yaml")
    assert main([verb, str(tmp_path / "run.yaml")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("veneer: error: ") and "ZeroDivisionError" in line and "unet/config.json" in line
