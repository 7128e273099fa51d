"""What single files of Stable Diffusion 1.x and 2.x predict, which their names and weights alone tell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from torch import nn

from veneer.family.sd import StableDiffusion

TELLING = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"


def prediction(place: Path, width: int, spread: float, config: str) -> str:
    """What a base predicts whose telling weight has this spread, read with a scheduler's configuration."""
    bias = torch.tensor([-spread, spread])
    unet = SimpleNamespace(
        named_parameters=lambda: [(TELLING, nn.Parameter(bias))], config=SimpleNamespace(cross_attention_dim=width)
    )
    pipeline = SimpleNamespace(unet=unet, scheduler=DDIMScheduler(prediction_type=config))
    return str(StableDiffusion._scheduler_of(pipeline, place).config.prediction_type)


@pytest.mark.parametrize(("spread", "told"), [(0.2, "v_prediction"), (0.05, "epsilon")])
def test_a_file_of_version_2_is_told_by_its_weight_and_not_by_the_configuration_of_2_1(
    tmp_path: Path, spread: float, told: str
) -> None:
    """diffusers reads all of them as v, by which a base of noise learns errors alone."""
    file = tmp_path / "base.safetensors"
    save_file({"a": torch.ones(1)}, file)
    assert [prediction(file, 1024, spread, config) for config in ("v_prediction", "epsilon")] == [told, told]
    assert prediction(file, 768, spread, "epsilon") == "epsilon"
    (tmp_path / "model_index.json").touch()
    assert prediction(file, 1024, spread, "v_prediction") == "v_prediction"
    assert prediction(tmp_path, 1024, spread, "epsilon") == "epsilon"


def test_a_file_of_version_1_says_by_its_marks_that_it_predicts_v(tmp_path: Path) -> None:
    file = tmp_path / "base.safetensors"
    save_file({"a": torch.ones(1), "v_pred": torch.empty(0)}, file)
    assert prediction(file, 768, 0.05, "epsilon") == "v_prediction"
    assert prediction(file, 1024, 0.05, "epsilon") == "v_prediction"
