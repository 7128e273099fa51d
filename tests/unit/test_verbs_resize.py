"""Adapter files cut to a lower rank."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.errors import raises_code
from tests.resizing import save_run_of_rank_4
from veneer.adapter.lora import delta_weight
from veneer.verbs.resize import resize_adapter
from veneer.weights.file import FILE_NAME, info, load


@pytest.fixture(scope="module")
def run(tiny_base: Path, tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run_of_rank_4(tiny_base, tiny_pictures, tmp_path_factory.mktemp("run") / "shapes")


def test_a_cut_file_does_nearly_the_same(run: Path, tmp_path: Path) -> None:
    out = resize_adapter(run, 2, tmp_path / "two.safetensors")
    whole, cut = load(run), load(out)
    assert info(out).hyperparameters == {"rank": (2,), "alpha": (2.0,)}
    for name, each in whole.weights.items():
        torch.testing.assert_close(delta_weight(cut.weights[name]), delta_weight(each), rtol=1e-3, atol=1e-5)
    told = {key: value for key, value in cut.metadata.items() if key.startswith("veneer.resized")}
    assert told == {"veneer.resized.rank": "2", "veneer.resized.from.sha256": info(run).sha256}
    assert whole.metadata.items() <= cut.metadata.items()


def test_the_new_file_lies_beside_the_old_and_replaces_nothing(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / FILE_NAME, tmp_path / "style.safetensors")
    out = resize_adapter(tmp_path / "style.safetensors", 1)
    assert out == tmp_path / "style-rank1.safetensors" and info(out).hyperparameters["rank"] == (1,)
    with raises_code("output.exists") as caught:
        resize_adapter(tmp_path / "style.safetensors", 1)
    caught.match("is there already")
    with raises_code("adapter.rank_not_lower"):
        resize_adapter(tmp_path / "style.safetensors", 4)


def test_kohyas_layout_needs_the_base(run: Path, tiny_base: Path, tmp_path: Path) -> None:

    tensors = {}
    for name, each in load(run).weights.items():
        key = "lora_unet_" + name.removeprefix("unet.").replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": each.down.contiguous(), f"{key}.lora_up.weight": each.up.contiguous()}
        tensors[f"{key}.alpha"] = torch.tensor(each.alpha)
    save_file(tensors, tmp_path / "kohya.safetensors")
    out = resize_adapter(tmp_path / "kohya.safetensors", 2, base=str(tiny_base))
    ours = load(resize_adapter(run, 2, tmp_path / "ours.safetensors")).weights
    found = load(out).weights
    assert set(found) == set(ours)
    assert all(np.allclose(found[name].up, ours[name].up) for name in ours)
