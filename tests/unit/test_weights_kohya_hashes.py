"""The hashes that a file has of itself, against kohya's own way of computing them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from veneer.weights.kohya_hashes import with_file_hashes
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
