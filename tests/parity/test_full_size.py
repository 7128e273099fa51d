"""Denoisers of full size without weights, against configurations and counts that were gathered from other trainers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from tests.families import family_cases
from veneer.adapter.inject import inject
from veneer.adapter.layers import layers_under
from veneer.adapter.lora import LoraSpec
from veneer.family.abstract import make_network
from veneer.family.published import PUBLISHED, read_published
from veneer.family.registry import family_class

GATHERED = Path(__file__).parent.parent / "data" / "configs"
FILES = {"sd15": "sd15", "sd21": "sd21", "sdxl": "sdxl"}
FILES |= {name: file for case in family_cases().values() for name, file in case.published.items()}
"""The file of counts by the published architecture's name."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ADDED = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
COUNTED = {"to_q,to_k,to_v,to_out.0": ATTENTION, "+ add_q_proj,add_k_proj,add_v_proj,to_add_out": ADDED}


QUICK = ("sd15", "sdxl", "flux-dev", "z-image", "qwen-image")
"""The sizes that the quick suite counts."""
EACH = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in PUBLISHED]


def gathered(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GATHERED / f"{FILES[name]}.json").read_text("utf-8"))
    return found


def published_denoiser(name: str) -> nn.Module:
    published = read_published(name)
    part = published.parts[family_class(published.pipeline).denoiser]
    return make_network(getattr(diffusers, gathered(name)["model_class"]), dict(part), torch.float32)


def matched(network: nn.Module, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of the targets that the network has a layer for."""
    paths = [f".{path}" for path, _ in layers_under(network)]
    return tuple(target for target in targets if any(path.endswith(f".{target}") for path in paths))


def lora_size(network: nn.Module, rank: int, targets: tuple[str, ...]) -> tuple[int, int]:
    """Return the adapted layers and the adapter's parameters."""
    spec = LoraSpec(rank, float(rank), matched(network, targets))
    injection = inject({"denoiser": network}, {"denoiser": spec}, seed=0)
    try:
        return len(injection.parameter_counts()), sum(parameter.numel() for parameter in injection.parameters())
    finally:
        injection.eject()


def test_every_published_architecture_was_gathered() -> None:
    assert set(FILES) == set(PUBLISHED)


@pytest.mark.parametrize("name", EACH)
def test_a_published_denoiser_has_the_shapes_of_the_gathered_configuration(name: str) -> None:
    expected = gathered(name)
    other = make_network(getattr(diffusers, expected["model_class"]), expected["config"], torch.float32)
    own = published_denoiser(name)
    assert {key: t.shape for key, t in own.state_dict().items()} == {
        key: t.shape for key, t in other.state_dict().items()
    }
    assert sum(parameter.numel() for parameter in own.parameters()) == expected["parameters"]


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("column", COUNTED)
def test_an_adapter_of_rank_16_has_the_gathered_size(name: str, column: str) -> None:
    expected = gathered(name)["lora_r16"][column]
    size = lora_size(published_denoiser(name), 16, COUNTED[column])
    assert size == (expected["modules"], expected["parameters"])


def test_rank_4_trains_797184_of_the_859520964_parameters_of_sd15() -> None:
    network = published_denoiser("sd15")
    assert sum(parameter.numel() for parameter in network.parameters()) == 859_520_964
    assert lora_size(network, 4, ATTENTION)[1] == 797_184


@pytest.mark.parametrize("name", ["sd15", "flux-dev"])
def test_peft_counts_the_same(name: str) -> None:
    network = published_denoiser(name).requires_grad_(False)
    with torch.device("meta"):
        inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=list(ATTENTION)), network)
    counted = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert counted == lora_size(published_denoiser(name), 4, ATTENTION)[1]
