"""Weights by the form of their files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from veneer.plan.weight_files import PartFiles, WeightFiles, read_weight_files


def _write(folder: Path, dtype: torch.dtype) -> None:
    for part, count in (("text_encoder", 1000), ("unet", 10_000), ("vae", 3000)):
        (folder / part).mkdir(parents=True)
        save_file({"weight": torch.zeros(count, dtype=dtype)}, folder / part / "model.safetensors")


def test_weights_of_float32_stay_in_their_file(tmp_path: Path) -> None:
    _write(tmp_path, torch.float32)
    found = read_weight_files(str(tmp_path), 0)
    assert found == WeightFiles(
        (PartFiles(1000, 4000), PartFiles(10_000, 40_000), PartFiles(3000, 12_000)), mapped=True
    )
    assert (found.copied_bytes, found.loading_bytes) == (0, 0)


def test_weights_of_float16_are_copied_while_their_file_is_read(tmp_path: Path) -> None:
    _write(tmp_path, torch.float16)
    found = read_weight_files(str(tmp_path), 0)
    assert not found.mapped
    assert found.copied_bytes == 4 * 14_000
    assert found.loading_bytes == 4 * 11_000 + 2 * 10_000  # when the second part has been read


def test_weights_that_are_not_here_count_as_copied() -> None:
    assert read_weight_files("owner/name", 4000) == WeightFiles((PartFiles(1000, 0),), mapped=False)
