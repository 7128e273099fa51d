"""peft's format, read by peft and by diffusers: they compute the delta W that was written, with any alpha."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModel

from tests.errors import raises_code
from veneer.adapter.dora import DoraFactors
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import AdapterWeights, Layer, LayerAdapter
from veneer.weights.file import AdapterFile, load, save
from veneer.weights.formats.protocol import BaseNames

ALPHAS = (2.0, 4.0, 0.3, 7.0)
TARGETS = {"unet": ("to_q", "conv1", "conv_in", "proj_in"), "text_encoder": ("q_proj", "fc1")}


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """A reader that ignores a tensor or doubts its config only warns; here that is a failure."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=RuntimeWarning)
        warnings.filterwarnings("error", category=UserWarning)
        yield


@pytest.fixture
def networks(tiny_base: Path) -> dict[str, nn.Module]:
    unet = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")
    return {"unet": unet, "text_encoder": CLIPTextModel.from_pretrained(tiny_base, subfolder="text_encoder")}


def factors(layer: Layer, number: int, method: str) -> LayerAdapter:
    """Ranks and alphas differ from layer to layer."""
    out, *inside = layer.weight.shape
    rank, generator = 2 + number % 3, torch.Generator().manual_seed(number)
    down = torch.randn(rank, *inside, generator=generator)
    up = torch.randn(out, rank, *(1 for _ in inside[1:]), generator=generator)
    lora = LoraFactors(down, up, ALPHAS[number % len(ALPHAS)])
    if method == "lora":
        return lora
    return DoraFactors(lora, torch.rand(out, *(1 for _ in inside), generator=generator) + 0.5)


def adapter(networks: dict[str, nn.Module], method: str) -> AdapterWeights:
    chosen = {
        path: layer
        for path, layer in layers_of(networks).items()
        if path.endswith(tuple(f".{target}" for target in TARGETS[path.partition(".")[0]]))
    }
    return {path: factors(layer, number, method) for number, (path, layer) in enumerate(chosen.items())}


def peft_delta(module: Any) -> torch.Tensor:
    """What peft adds to a layer's weight, by its own merging."""
    before = module.get_base_layer().weight.detach().clone()
    module.merge()
    return module.get_base_layer().weight.detach() - before


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("reader", ["peft", "the network's own"])
@pytest.mark.parametrize("knows_base", [True, False])
def test_readers_find_the_delta_w_of_each_layer(
    networks: dict[str, nn.Module], tmp_path: Path, method: str, reader: str, knows_base: bool
) -> None:
    weights = adapter(networks, method)
    base = BaseNames(networks) if knows_base else None
    save(AdapterFile(weights, {"note": "x"}), tmp_path / "peft", "peft", base)
    plain = {path: layer.weight.detach().clone() for path, layer in layers_of(networks).items()}
    for name, network in networks.items():
        folder = tmp_path / "peft" / name
        if reader == "peft":
            loaded: Any = PeftModel.from_pretrained(network, folder).get_base_model()
        elif name == "unet":
            network.load_lora_adapter(folder, prefix="base_model.model", weight_name="adapter_model.safetensors")
            loaded = network
        else:
            network.load_adapter(str(folder))
            loaded = network
        wrapped = {path: module for path, module in loaded.named_modules() if hasattr(module, "lora_A")}
        own = {path.removeprefix(f"{name}."): each for path, each in weights.items() if path.startswith(f"{name}.")}
        assert wrapped.keys() == own.keys()
        for path, each in own.items():
            expected = each.delta_weight(plain[f"{name}.{path}"])
            torch.testing.assert_close(peft_delta(wrapped[path]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_it_comes_back_to_the_bit(networks: dict[str, nn.Module], tmp_path: Path, method: str) -> None:
    """With the base or without: each file says which network it is of."""
    weights = adapter(networks, method)
    digest = save(AdapterFile(weights, {"note": "x"}), tmp_path / "peft", "peft")
    for read in (load(tmp_path / "peft"), load(tmp_path / "peft", networks)):
        assert read.metadata == {"note": "x"} and read.weights.keys() == weights.keys()
        for path, each in weights.items():
            state = read.weights[path].state_dict()
            assert all(torch.equal(state[name], tensor) for name, tensor in each.state_dict().items()), path
    assert save(read, tmp_path / "again", "peft") == digest


def test_of_one_network_the_files_lie_in_the_folder_itself(networks: dict[str, nn.Module], tmp_path: Path) -> None:
    weights = {path: each for path, each in adapter(networks, "lora").items() if path.startswith("text_encoder.")}
    save(AdapterFile(weights), tmp_path / "peft", "peft")
    assert {path.name for path in (tmp_path / "peft").iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    assert all(name.startswith("base_model.model.") for name in load_file(tmp_path / "peft/adapter_model.safetensors"))
    assert load(tmp_path / "peft").weights.keys() == weights.keys()


def test_the_config_tells_ranks_and_alphas_by_layer(networks: dict[str, nn.Module], tmp_path: Path) -> None:
    save(AdapterFile(adapter(networks, "dora")), tmp_path / "peft", "peft")
    config = json.loads((tmp_path / "peft/unet/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["use_dora"] is True
    assert len(config["rank_pattern"]) > 1 and len(config["alpha_pattern"]) > 1
    assert all(
        "lora_magnitude_vector" not in name or name.endswith("_vector")
        for name in load_file(tmp_path / "peft/unet/adapter_model.safetensors")
    )


def test_magnitudes_of_inputs_have_no_place(networks: dict[str, nn.Module], tmp_path: Path) -> None:
    path, layer = next((path, layer) for path, layer in layers_of(networks).items() if path.endswith("to_k"))
    lora = factors(layer, 0, "lora")
    assert isinstance(lora, LoraFactors)
    weights = {path: DoraFactors(lora, torch.rand(1, layer.weight.shape[1]))}
    with raises_code("adapter.magnitudes_over_inputs"):
        save(AdapterFile(weights), tmp_path / "peft", "peft")
    assert not (tmp_path / "peft").exists()
