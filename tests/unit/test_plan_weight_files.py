"""Weights by the form of their files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from veneer.plan.weight_files import PartFiles, WeightFiles, read_weight_files

PARTS = {"text_encoder": 1000, "unet": 10_000, "vae": 3000}


def _write(folder: Path, dtype: torch.dtype, pipeline: str = "StableDiffusionPipeline", **more: int) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), "utf-8")
    for part, count in (PARTS | more).items():
        (folder / part).mkdir(parents=True)
        save_file({"weight": torch.zeros(count, dtype=dtype)}, folder / part / "model.safetensors")


def test_weights_of_float32_stay_in_their_file(tmp_path: Path) -> None:
    _write(tmp_path, torch.float32)
    found = read_weight_files(str(tmp_path), 0)
    assert found == WeightFiles(
        (PartFiles(10_000, 40_000), PartFiles(3000, 12_000), PartFiles(1000, 4000)), mapped=True
    )
    assert (found.copied_bytes, found.loading_bytes) == (0, 0)


def test_weights_of_float16_are_copied_while_their_file_is_read(tmp_path: Path) -> None:
    _write(tmp_path, torch.float16)
    found = read_weight_files(str(tmp_path), 0)
    assert not found.mapped
    assert found.copied_bytes == 4 * 14_000
    assert found.loading_bytes == 4 * 10_000 + 2 * 10_000  # when the first part, the largest, has been read


def test_the_parts_are_the_familys(tmp_path: Path) -> None:
    """A part that is not loaded, such as a safety checker, takes no memory."""
    more = {"text_encoder_2": 5000, "safety_checker": 7000}
    _write(tmp_path, torch.float16, "StableDiffusionXLPipeline", **more)
    assert [part.count for part in read_weight_files(str(tmp_path), 0).parts] == [10_000, 3000, 1000, 5000]


def test_weights_that_are_not_here_count_as_copied() -> None:
    assert read_weight_files("owner/name", 4000) == WeightFiles((PartFiles(1000, 0),), mapped=False)
