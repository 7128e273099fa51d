"""The adapter that a folder holds is found under whatever name a format gives it, and under no other's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.errors import raises_code
from veneer.weights.adapter_path import BEST, FILE_NAME, FILE_NAMES, adapter_name, adapters_in, file_in, files_in
from veneer.weights.formats.registry import FORMATS
from veneer.weights.formats.strength import FILE_NAME as PEFT_NAME


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_the_formats_have_the_names_of_the_table() -> None:
    assert {name: each.file_name("cats") for name, each in FORMATS.items()} == {
        name: pattern.replace("{name}", "cats") for name, pattern in FILE_NAMES.items()
    }


@pytest.mark.parametrize(
    "name", [FILE_NAME, PEFT_NAME, "cats.safetensors", "cats_comfyui.safetensors", "other.safetensors"]
)
def test_one_file_is_found_beside_a_run_s_best(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "cats" / BEST)
    assert file_in(tmp_path / "cats" / BEST).name == BEST
    with raises_code("weights.no_adapter_file"):
        file_in(tmp_path / "cats")
    place = touch(tmp_path / "cats" / name)
    assert files_in(tmp_path / "cats") == {place: None}


def test_of_several_diffusers_comes_first(tmp_path: Path) -> None:
    folder = tmp_path / "cats"
    for name in ("cats.safetensors", "cats_comfyui.safetensors", f"peft/unet/{PEFT_NAME}", FILE_NAME):
        touch(folder / name)
    assert file_in(folder) == folder / FILE_NAME
    assert list(adapters_in(folder)) == ["diffusers", "kohya", "comfy", "peft"]
    (folder / FILE_NAME).unlink()
    assert file_in(folder) == folder / "cats.safetensors"


def test_strange_files_are_not_chosen_among(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        touch(tmp_path / name)
    with raises_code("weights.no_adapter_file"):
        file_in(tmp_path)


def test_peft_s_folders_say_their_networks(tmp_path: Path) -> None:
    places = {touch(tmp_path / name / PEFT_NAME): name for name in ("unet", "text_encoder")}
    assert files_in(tmp_path) == places
    with raises_code("weights.several_files", "holds a file for each of 2 networks; name one, such as unet/"):
        file_in(tmp_path)


@pytest.mark.parametrize(
    ("folder", "name"), [("cats", "cats"), ("best", "best_lora"), ("adapter_model", "adapter_model_lora")]
)
def test_an_adapter_s_name_is_its_folder_s_unless_it_is_taken(tmp_path: Path, folder: str, name: str) -> None:
    assert adapter_name(tmp_path / folder) == name


def test_nobody_s_own_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "ada"))
    assert adapter_name(tmp_path / "ada") == adapter_name(Path("/")) == "adapter"
