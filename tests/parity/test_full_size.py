"""Stable Diffusion 1.5's UNet at its full size, from its config, without its weights."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def stable_diffusion_1() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64,
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            attention_head_dim=8,
            cross_attention_dim=768,
        )


def test_rank_4_on_the_attention_trains_797184_of_859520964_parameters() -> None:
    unet = stable_diffusion_1()
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    injection = inject({"unet": unet}, {"unet": LoraSpec(4, 4.0, TARGETS)}, seed=0)
    assert sum(parameter.numel() for parameter in injection.parameters()) == 797_184
    assert {match.target: len(match.modules) for match in injection.matches} == dict.fromkeys(TARGETS, 32)


def test_peft_counts_the_same() -> None:
    unet = stable_diffusion_1()
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(TARGETS), init_lora_weights="gaussian"))
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == 797_184
