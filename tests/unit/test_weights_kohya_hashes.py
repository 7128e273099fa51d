"""The hashes that a file has of itself, against kohya's own way of computing them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from tests.adapters import adapter, small_networks
from veneer.weights.file import AdapterFile
from veneer.weights.file import save as save_adapter
from veneer.weights.formats.protocol import BaseNames
from veneer.weights.kohya_hashes import with_file_hashes
from veneer.weights.metadata import BaseLabels
from veneer.weights.safetensors import encode


def reference(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> tuple[str, str]:
    """As ``precalculate_safetensors_hashes`` of sd-scripts (library/train_util.py)."""
    file = io.BytesIO(save(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")}))
    file.seek(8 + int.from_bytes(file.read(8), "little"))
    model = hashlib.sha256(file.read()).hexdigest()
    file.seek(0x100000)
    return model, hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


@pytest.mark.parametrize("size", [3, 600_000])
def test_the_hashes_are_kohyas(size: int, tmp_path: Path) -> None:
    values = torch.arange(size, dtype=torch.float32)
    tensors = {"b.lora_up.weight": values.half(), "a.lora_down.weight": values, "a.alpha": torch.tensor(4.0)}
    metadata = {"ss_seed": "1", "veneer.seed": "1", "modelspec.sai_model_spec": "1.0.1"}
    said = with_file_hashes(tensors, metadata)
    model, legacy = reference(tensors, metadata)
    assert (said["sshs_model_hash"], said["sshs_legacy_hash"]) == (model, legacy)
    assert said["modelspec.hash_sha256"] == f"0x{model}"
    assert metadata.items() <= said.items()

    content = encode(tensors, said)  # the file itself, as Civitai hashes it
    assert hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest() == model


def test_a_file_without_modelspec_gets_no_hash_of_it() -> None:
    assert "modelspec.hash_sha256" not in with_file_hashes({"a": torch.ones(1)}, {})


def test_a_header_of_more_than_a_mebibyte_is_hashed_as_kohya_does() -> None:
    tensors, metadata = {"a.alpha": torch.tensor(4.0)}, {"ss_tag_frequency": "x" * 0x120000}
    assert with_file_hashes(tensors, metadata)["sshs_legacy_hash"] == reference(tensors, metadata)[1]


def test_a_saved_file_has_its_own_hashes_and_its_bases_kind(tmp_path: Path) -> None:
    networks, labels = small_networks(), BaseLabels("stable-diffusion-xl-v1-base", "sdxl_base_v1-0")
    layers = {path.replace("net", "unet"): each for path, each in adapter(0).items()}
    base = BaseNames({"unet": networks["net"]}, labels=labels)
    path = tmp_path / "shapes.safetensors"
    save_adapter(AdapterFile(layers, {"ss_output_name": "theirs", "sshs_model_hash": "old"}), path, "kohya", base)
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        said = file.metadata()
    assert said["sshs_model_hash"] == reference(tensors, said)[0]
    assert said["sshs_legacy_hash"] == reference(tensors, said)[1]
    assert said["ss_base_model_version"] == "sdxl_base_v1-0" and said["modelspec.title"] == "shapes"
    assert said["ss_output_name"] == "theirs" and said["ss_network_dim"] == "2"
