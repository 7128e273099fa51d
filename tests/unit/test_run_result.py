"""What a run whose disk is full at its end leaves behind: the adapter somewhere, and what else there is room for."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.errors import raises_code
from tests.running import quick_config, use_base
from veneer.config.schema import OutputConfig
from veneer.doctor.gather import run_doctor
from veneer.errors import UserError
from veneer.family.protocol import Family
from veneer.run import result
from veneer.run.events import AdapterSaved
from veneer.run.folder import CARD, SHEET, claim, clear
from veneer.run.session import run_training
from veneer.train.events import Warned
from veneer.weights.adapter_path import adapters_in
from veneer.weights.file import FILE_NAME, load
from veneer.weights.summary import info

FULL = os.strerror(errno.ENOSPC)


def make_full(patch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Let no file be written into these folders from the adapter on."""

    def full(write: Callable[..., Any], place: int) -> Callable[..., Any]:
        def writing(*args: Any, **kwargs: Any) -> Any:
            if any(Path(args[place]).is_relative_to(folder) for folder in folders):
                raise UserError(f"cannot be written: {FULL}", code="files.unwritable", where=args[place])
            return write(*args, **kwargs)

        return writing

    for name, place in (("save", 1), ("write_sheet", 1), ("write_evaluation", 1), ("atomic_write", 0)):
        patch.setattr(result, name, full(getattr(result, name), place))


@pytest.mark.slow
def test_an_adapter_without_room_in_its_folder_is_kept_elsewhere(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_base(monkeypatch, family)
    run, spare = tmp_path / "run", tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    make_full(monkeypatch, run)
    with raises_code("files.unwritable") as caught:
        run_training(quick_config(tiny_base, tiny_pictures, run))
    (rescued,) = spare.rglob(FILE_NAME)
    assert f"what was trained is in {rescued}" in str(caught.value) and "--resume" in str(caught.value)
    assert load(rescued, family.networks, family.key_names).weights

    rescued.unlink()
    make_full(monkeypatch, run, spare)
    with raises_code("files.unwritable") as caught:
        run_training(quick_config(tiny_base, tiny_pictures, run), overwrite=True)
    assert str(caught.value).endswith(f"{FULL}; make room and go on from the newest checkpoint with --resume")
    assert not list(spare.rglob(FILE_NAME))


def test_what_only_shows_an_adapter_does_not_end_its_run(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_base(monkeypatch, family)
    warnings: list[Warned] = []

    def callback(event: object) -> None:
        if isinstance(event, AdapterSaved):
            make_full(monkeypatch, tmp_path)
        if isinstance(event, Warned):
            warnings.append(event)

    held_out = quick_config(tiny_base, tiny_pictures, tmp_path, data={"held_out": 0.25})
    outcome = run_training(held_out, callback=callback)
    assert outcome.adapter.is_file() and outcome.sheet is None and outcome.score is not None
    codes = ["result.not_written", "result.format_not_written", *["result.not_written"] * 2]
    assert [warning.code for warning in warnings] == codes
    assert [warning.text.partition(":")[0] for warning in warnings] == [
        "no sheet",
        "the adapter was not written for kohya",
        "no evaluation",
        "no model card",
    ]
    assert not any((tmp_path / name).exists() for name in (SHEET, CARD))


ALL: tuple[Any, ...] = ("diffusers", "kohya", "comfy", "peft")


@pytest.fixture(scope="module")
def saved(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[AdapterSaved]]:
    """A run's folder with the adapter in all formats, and what was told of them."""
    events: list[AdapterSaved] = []
    folder = tmp_path_factory.mktemp("runs") / "shapes"
    config = quick_config(tiny_base, tiny_pictures, folder)
    config = config.model_copy(update={"output": OutputConfig(dir=folder, formats=ALL)})
    with pytest.MonkeyPatch.context() as patch:
        use_base(patch, family)
        run_training(config, callback=lambda event: events.append(event) if isinstance(event, AdapterSaved) else None)
    return folder, events


def test_each_format_lies_beside_the_others_and_says_the_same(
    family: Family, saved: tuple[Path, list[AdapterSaved]]
) -> None:
    folder, events = saved
    assert {event.format: event.path.name for event in events} == {
        "diffusers": FILE_NAME,
        "kohya": "shapes.safetensors",
        "comfy": "shapes_comfyui.safetensors",
        "peft": "peft",
    }
    assert adapters_in(folder) == {event.format: event.path for event in events}
    deltas = [deltas_of(event.path, family) for event in events]
    for path, delta in deltas[0].items():
        assert delta.any() and all(torch.equal(other[path], delta) for other in deltas), path


def deltas_of(path: Path, family: Family) -> dict[str, torch.Tensor]:
    weights = load(path, family.networks, family.key_names).weights
    return {layer: adapter.delta_weight(torch.zeros(adapter.shape)) for layer, adapter in weights.items()}


@pytest.mark.parametrize("kept", ALL)
def test_a_folder_s_adapter_is_found_in_any_format(
    family: Family, saved: tuple[Path, list[AdapterSaved]], tmp_path: Path, kept: str
) -> None:
    run = shutil.copytree(saved[0], tmp_path / "shapes")
    for name, place in adapters_in(run).items():
        if name != kept:
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert load(run, family.networks, family.key_names).weights
    with raises_code("output.has_result"):
        claim(run)
    assert run_doctor(run)[1].weight_changes
    clear(run)
    assert not adapters_in(run) and not (run / "peft").exists()


def test_kohyas_file_has_all_that_lists_show(
    family: Family, tiny_base: Path, tiny_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_base(monkeypatch, family)
    folder = tmp_path / "shapes"
    run_training(quick_config(tiny_base, tiny_pictures, folder, data={"held_out": 0.25, "trigger": "zxc"}))
    found = info(folder / "shapes.safetensors")
    said = found.metadata
    assert said["ss_output_name"] == said["modelspec.title"] == "shapes"
    assert said["sshs_model_hash"] == found.hashes.data_sha256
    assert said["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert json.loads(said["ss_tag_frequency"])["shapes"]["zxc"] == 9 and said["ss_steps"] == said["veneer.steps"]
    places = (str(tmp_path), str(tiny_base), str(tiny_pictures), str(Path.home()))
    assert [key for key, value in said.items() for place in places if place in value] == []
    shown = {key for key in info(folder).metadata if key.startswith(("ss_", "modelspec."))}
    assert shown == set(), "diffusers' file is as it was"
    card = (folder / CARD).read_text("utf-8")
    assert f"| `shapes.safetensors` | none: no program that reads it loads this base | `{found.sha256}` |" in card
