"""A base is identified by its weights and its settings."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import veneer.base
from tests.errors import raises_code
from veneer.family.fingerprint import fingerprint, settings_hash, settings_of
from veneer.plan.weight_files import read_weight_files


def test_a_copy_is_the_same_base_whatever_lies_beside_its_weights(tiny_base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    (copy / "unet" / "config.json").write_text("written anew")
    (copy / "adapter.safetensors").write_bytes(b"an adapter that somebody keeps here")
    assert fingerprint(str(copy)) == fingerprint(str(tiny_base))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_one_bit_of_any_part_is_another_base(tiny_base: Path, tmp_path: Path, part: str) -> None:
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    (weights,) = (copy / part).glob("*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fingerprint(str(copy)) != fingerprint(str(tiny_base))


def test_the_hash_is_what_the_documentation_says(tiny_base: Path) -> None:
    lines = []
    for part in ("text_encoder", "unet", "vae"):
        for file in sorted((tiny_base / part).glob("*.safetensors")):
            lines.append(f"{part}/{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n")
    assert fingerprint(str(tiny_base)) == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert fingerprint("bundled") == fingerprint(str(veneer.base.path()))


def test_a_folder_without_weights_is_no_base(tmp_path: Path) -> None:
    with raises_code("base.no_weights") as caught:
        fingerprint(str(tmp_path))
    assert str(caught.value) == f"{tmp_path}: holds no weights"


def test_of_a_part_without_safetensors_the_pickle_counts(tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    assert fingerprint(str(base)) == fingerprint(str(tiny_base))  # which is not read beside the other
    weights.unlink()
    one = fingerprint(str(base))
    torch.save({}, weights.with_suffix(".bin"))
    assert len({one, fingerprint(str(base)), fingerprint(str(tiny_base))}) == 3
    assert not read_weight_files(str(base), 400).mapped
    assert [part.count for part in read_weight_files(str(base), 400).parts] == [100]


def test_a_file_is_its_own_hash(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x" * (2**20 + 3))
    assert fingerprint(str(file)) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_base_of_the_hub_is_found_where_it_was_downloaded_to(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "models--owner--name"
    shutil.copytree(tiny_base, stored / "snapshots" / "0123")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert fingerprint("owner/name") == fingerprint(str(tiny_base))


@pytest.mark.parametrize("base", ["owner/other", "no such folder", "../x/y"])
def test_a_base_that_is_not_here(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with raises_code("base.not_found") as caught:
        fingerprint(base)
    assert str(caught.value) == f"{base}: is not on this machine"


@pytest.mark.parametrize(
    ("part", "file", "key", "value"),
    [
        ("scheduler", "scheduler_config", "prediction_type", "v_prediction"),
        ("scheduler", "scheduler_config", "beta_end", 0.02),
        ("scheduler", "scheduler_config", "rescale_betas_zero_snr", True),
        ("scheduler", "scheduler_config", "trained_betas", [0.01] * 1000),
        ("vae", "config", "scaling_factor", 0.5),
        ("vae", "config", "act_fn", "relu"),
        ("unet", "config", "flip_sin_to_cos", False),
        ("text_encoder", "config", "hidden_act", "gelu"),
        ("tokenizer", "tokenizer_config", "model_max_length", 12),
    ],
)
def test_a_setting_that_changes_numbers_is_another_base_of_the_same_weights(
    tiny_base: Path, tmp_path: Path, part: str, file: str, key: str, value: object
) -> None:
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    path = copy / part / f"{file}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    before, after = settings_of(str(tiny_base)), settings_of(str(copy))
    name = "tokenizer.length" if part == "tokenizer" else f"{part}.{key}"
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {name}
    assert settings_hash(before) != settings_hash(after)
    assert fingerprint(str(copy)) == fingerprint(str(tiny_base))


def test_another_word_for_a_token_is_another_base(tiny_base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    for path in (copy / "tokenizer").glob("*"):
        path.write_text(path.read_text("utf-8").replace('"b</w>"', '"bb</w>"'), "utf-8")
    assert settings_of(str(copy)) != settings_of(str(tiny_base))


def test_settings_of_painting_and_a_class_s_defaults_are_no_part_of_it(tiny_base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    for place, values in {
        "scheduler/scheduler_config": {"steps_offset": 1, "clip_sample": False},
        "unet/config": {"sample_size": 16, "_diffusers_version": "0.41.0", "mid_block_scale_factor": 1},
    }.items():
        path = copy / f"{place}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    assert settings_of(str(copy)) == settings_of(str(tiny_base))


def test_settings_are_short_and_of_plain_words(tiny_base: Path) -> None:
    assert all(len(text) <= 60 and text.isprintable() for text in settings_of(str(tiny_base)).values())
