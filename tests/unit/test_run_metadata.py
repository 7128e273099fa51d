"""What files of a run say of it: nothing of the machine, and the same each time."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest

from tests.adapters import adapter
from tests.running import quick_config, use_base
from veneer.family.protocol import Family
from veneer.run.identity import BASE
from veneer.run.metadata import file_metadata
from veneer.run.preparation import TrainingInputs, prepare
from veneer.run.resume import StartOptions


@pytest.fixture
def inputs(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainingInputs:
    """A run of somebody whose name is alice, whose pictures are right in the home folder."""
    home = tmp_path / "alice"
    copytree(tiny_pictures, home)
    monkeypatch.setenv("HOME", str(home))
    use_base(monkeypatch, family)
    config = quick_config(tiny_base, home, home / "runs" / "shapes", data={"held_out": 0.0, "trigger": "zxc"})
    return prepare(config, StartOptions(None, True), lambda event: None)


def test_no_path_and_no_name_of_the_user_is_told(inputs: TrainingInputs, tmp_path: Path) -> None:
    said = file_metadata(inputs, adapter(0), 6, "kohya")
    secrets = [str(tmp_path), "alice", str(inputs.run.folder), str(inputs.run.config.base), "/runs"]
    assert [(key, value) for key, value in said.items() for secret in secrets if secret in value] == []
    assert json.loads(said["ss_dataset_dirs"]) == {"pictures": {"n_repeats": 1, "img_count": 12}}
    assert said["ss_output_name"] == "shapes" and said["ss_sd_model_name"] == "tiny"
    assert said["veneer.steps"] == said["ss_steps"] == "6"
    assert "ss_new_sd_model_hash" not in said, "a folder has no hash that A1111 knows"


def test_the_base_of_a_single_file_is_told_as_a1111_knows_it(inputs: TrainingInputs, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(range(256)) * 5000)
    run = replace(inputs.run, config=inputs.run.config.model_copy(update={"base": str(file)}))
    said = file_metadata(replace(inputs, run=run), adapter(0), 6, "kohya")
    assert said["ss_sd_model_name"] == "model.safetensors"
    assert said["ss_new_sd_model_hash"] == run.hashes[BASE]
    assert said["ss_sd_model_hash"] == hashlib.sha256(file.read_bytes()[0x100000:0x110000]).hexdigest()[:8]


def test_a_licence_is_told_where_it_is_known(
    inputs: TrainingInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    config = inputs.run.config.model_copy(update={"base": name})
    known = replace(inputs, run=replace(inputs.run, config=config))
    assert file_metadata(known, adapter(0), 6, "kohya")["modelspec.license"] == "CreativeML Open RAIL-M"
    assert "modelspec.license" not in file_metadata(inputs, adapter(0), 6, "kohya")
    (tmp_path / name).mkdir(parents=True)  # somebody's own model may lie under this name
    monkeypatch.chdir(tmp_path)
    assert "modelspec.license" not in file_metadata(known, adapter(0), 6, "kohya")


def test_a_diffusers_file_says_what_it_always_said(inputs: TrainingInputs) -> None:
    assert file_metadata(inputs, adapter(0), 6, "diffusers") == inputs.run.metadata | {"veneer.steps": "6"}
