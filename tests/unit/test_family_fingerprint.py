"""A base is known by its weights."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

import veneer.base
from veneer.errors import UserError
from veneer.family.fingerprint import fingerprint


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


def test_it_is_what_the_documentation_says(tiny_base: Path) -> None:
    lines = []
    for part in ("text_encoder", "unet", "vae"):
        for file in sorted((tiny_base / part).glob("*.safetensors")):
            lines.append(f"{part}/{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n")
    assert fingerprint(str(tiny_base)) == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert fingerprint("bundled") == fingerprint(str(veneer.base.path()))


def test_a_folder_without_weights_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no weights"):
        fingerprint(str(tmp_path))


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
def test_what_is_not_here_is_said_so(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"{base}: is not on this machine"):
        fingerprint(base)
