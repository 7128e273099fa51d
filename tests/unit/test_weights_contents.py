"""A file that is neither a base nor an adapter has one name, wherever it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.errors import raises_code
from veneer.family.registry import detect_file
from veneer.weights.file import load
from veneer.weights.formats.contents import content_of

TITLES = {
    "control_model.input_blocks.0.0.weight": "is a ControlNet",
    "controlnet_cond_embedding.conv_in.weight": "is a ControlNet",
    "lllite_unet_input_blocks_4_1.conditioning1.0.weight": "is a ControlNet-LLLite",
    "image_proj.proj.weight": "is an IP-Adapter",
    "ip_adapter.1.to_k_ip.weight": "is an IP-Adapter",
    "adapter.body.0.in_conv.weight": "is a T2I-Adapter",
    "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight": "is a motion module",
    "conv_first.weight": "is an upscaler",
    "optimizer.0.exp_avg": "is a training's saved state",
    "unet:0:up": "is a LoRA of cloneofsimo's trainer of 2022",
    "decoder.up_blocks.0.resnets.0.conv1.weight": "is an autoencoder (VAE)",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "is a text encoder (T5)",
    "model.layers.0.self_attn.q_proj.weight": "is a language model",
    "text_model.encoder.layers.0.mlp.fc1.weight": "is a text encoder",
    "down_blocks.0.resnets.0.conv1.weight": "is a denoiser",
}


@pytest.mark.parametrize(("name", "title"), TITLES.items())
def test_a_base_and_an_adapter_are_refused_by_the_same_name(name: str, title: str, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(4, 4)}, file)
    with raises_code("weights.not_an_adapter", title):
        load(file)
    with raises_code("base.not_a_model", title):
        detect_file(file)


def test_a_denoiser_is_none_s_adapter_for_norms_that_some_adapters_have_too(tmp_path: Path) -> None:
    """Control LoRAs have the scales of FLUX's norms under the names that FLUX itself has."""
    blocks = {f"double_blocks.0.img_attn.{name}": torch.zeros(4, 4) for name in ("qkv.weight", "proj.weight")}
    norms = {"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(4)}
    save_file({**blocks, **norms}, tmp_path / "x.safetensors")
    with raises_code("weights.not_an_adapter", "is a denoiser"):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["body.0.rdb1.conv1.weight", "layers.0.weight", "blocks.0.weight", "x"])
def test_what_is_not_known_is_not_guessed(name: str) -> None:
    assert content_of([name]) is None


def test_only_the_groups_that_are_asked_for_count() -> None:
    names = ["model.diffusion_model.a", "first_stage_model.decoder.conv_in.weight"]
    whole, part = content_of(names), content_of(names, "part")
    assert whole is not None and whole.title == "a whole checkpoint"
    assert part is not None and part.title == "an autoencoder (VAE)"
    assert content_of(names, "addition") is None
