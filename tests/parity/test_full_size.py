"""Denoisers of full size without weights, against configurations and counts that were gathered from other trainers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.family.abstract import make_network
from veneer.family.published import PUBLISHED, read_published

GATHERED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "full_size.json").read_text("utf-8"))
KINDS = {"UNet2DConditionModel": UNet2DConditionModel, "FluxTransformer2DModel": FluxTransformer2DModel}
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def denoiser(config: dict[str, Any]) -> nn.Module:
    return make_network(KINDS[config["_class_name"]], config, torch.float32)


def published_denoiser(name: str) -> nn.Module:
    parts = read_published(name).parts
    return denoiser(dict(parts["transformer" if "transformer" in parts else "unet"]))


def lora_size(network: nn.Module, rank: int) -> int:
    injection = inject({"unet": network}, {"unet": LoraSpec(rank, float(rank), TARGETS)}, seed=0)
    try:
        assert len({match.target for match in injection.matches}) == len(TARGETS)
        return sum(parameter.numel() for parameter in injection.parameters())
    finally:
        injection.eject()


def test_every_published_architecture_was_gathered() -> None:
    assert set(GATHERED) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_denoiser_has_the_shapes_of_the_gathered_configuration(name: str) -> None:
    own, gathered = published_denoiser(name), denoiser(GATHERED[name]["config"])
    assert {key: t.shape for key, t in own.state_dict().items()} == {
        key: t.shape for key, t in gathered.state_dict().items()
    }
    assert sum(parameter.numel() for parameter in own.parameters()) == GATHERED[name]["parameters"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_adapter_of_rank_16_on_the_attention_has_the_gathered_size(name: str) -> None:
    network = published_denoiser(name)
    assert lora_size(network, 16) == GATHERED[name]["attention_lora_r16"]
    layers = [path for path, _ in network.named_modules() if path.endswith(TARGETS)]
    assert len(layers) == GATHERED[name]["attention_layers"]


def test_rank_4_trains_797184_of_the_859520964_parameters_of_sd15() -> None:
    network = published_denoiser("sd15")
    assert sum(parameter.numel() for parameter in network.parameters()) == 859_520_964
    assert lora_size(network, 4) == 797_184


@pytest.mark.parametrize("name", PUBLISHED)
def test_peft_counts_the_same(name: str) -> None:
    network = published_denoiser(name).requires_grad_(False)
    with torch.device("meta"):
        inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=list(TARGETS)), network)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == lora_size(published_denoiser(name), 4)
