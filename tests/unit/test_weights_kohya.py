"""kohya's names: written and read against a base's layers, in every family's spelling."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.errors import raises_code
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import AdapterWeights, Layer
from veneer.family.native_names import native_names
from veneer.weights.file import load
from veneer.weights.formats.kohya import KOHYA
from veneer.weights.formats.layers import LayerIndex
from veneer.weights.formats.protocol import BaseNames

DATA = Path(__file__).parents[1] / "data"
"""SDXL's UNet: its configuration, and for each layer its path in diffusers and in the native model."""


def networks(**more: nn.Module) -> dict[str, nn.Module]:
    unet = nn.ModuleDict({"mid": nn.ModuleDict({"to_q": nn.Linear(6, 5)}), "conv_in": nn.Conv2d(6, 5, 3)})
    text = nn.ModuleDict({"encoder": nn.ModuleDict({"fc1": nn.Linear(6, 5)})})
    return {"unet": unet, "text_encoder": text, **more}


def factors(*kernel: int, alpha: float = 3.0) -> LoraFactors:
    places = (1,) * len(kernel)
    return LoraFactors(torch.randn(2, 6, *kernel), torch.randn(5, 2, *places), alpha)


def read(tensors: dict[str, Tensor], base: BaseNames) -> AdapterWeights:
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder, "x.safetensors"))
        return load(Path(folder, "x.safetensors"), base.networks, base.key_names).weights


def test_written_and_read_back_to_the_bit() -> None:
    weights = {
        "unet.mid.to_q": factors(),
        "unet.conv_in": factors(3, 3, alpha=0.5),
        "text_encoder.encoder.fc1": factors(),
    }
    base = BaseNames(networks())
    tensors = KOHYA.write(weights, base)[0].tensors
    assert {name.partition(".")[0] for name in tensors} == {
        "lora_unet_mid_to_q",
        "lora_unet_conv_in",
        "lora_te_text_model_encoder_fc1",
    }
    back = read(tensors, base)
    assert back.keys() == weights.keys()
    for path, each in weights.items():
        state = back[path].state_dict()
        assert all(torch.equal(state[part], tensor) for part, tensor in each.state_dict().items())


def test_two_text_encoders_are_numbered() -> None:
    """The first lost a level of its names in transformers 5, the second has it; files have it in both."""
    second = nn.ModuleDict({"text_model": nn.ModuleDict({"fc1": nn.Linear(6, 5)})})
    base = BaseNames(networks(text_encoder_2=second))
    weights = {"text_encoder.encoder.fc1": factors(), "text_encoder_2.text_model.fc1": factors()}
    tensors = KOHYA.write(weights, base)[0].tensors
    assert {name.partition(".")[0] for name in tensors} == {
        "lora_te1_text_model_encoder_fc1",
        "lora_te2_text_model_fc1",
    }
    assert read(tensors, base).keys() == weights.keys()


def test_a_name_that_would_mean_two_layers_is_not_written() -> None:
    unet = nn.ModuleDict({"a_b": nn.Linear(6, 5), "a": nn.ModuleDict({"b": nn.Linear(6, 5)})})
    with raises_code("weights.ambiguous_layer") as error:
        KOHYA.write({"unet.a.b": factors()}, BaseNames({"unet": unet}))
    assert "lora_unet_a_b would mean unet.a.b and unet.a_b" in str(error.value)


def test_it_is_written_for_the_base_that_it_is_of() -> None:
    with raises_code("adapter.other_architecture"):
        KOHYA.write({"unet.other": factors()}, BaseNames(networks()))
    with raises_code("weights.needs_base"):
        KOHYA.write({"unet.mid.to_q": factors()})


def test_a_family_s_own_names_are_written_and_both_are_read() -> None:
    base = BaseNames(networks(), {"kohya": {"unet.mid.to_q": "unet.middle_block.1.to_q"}})
    tensors = KOHYA.write({"unet.mid.to_q": factors()}, base)[0].tensors
    assert {name.partition(".")[0] for name in tensors} == {"lora_unet_middle_block_1_to_q"}
    assert set(read(tensors, base)) == {"unet.mid.to_q"}
    plain = KOHYA.write({"unet.mid.to_q": factors()}, BaseNames(networks()))[0].tensors
    assert set(read(plain, base)) == {"unet.mid.to_q"}


def test_all_of_sdxl_s_names_mean_one_layer_each() -> None:
    """At full size, without numbers; kohya's names of SDXL are those of the native model, in underscores."""
    config = json.loads((DATA / "sdxl_unet_config.json").read_text())
    with torch.device("meta"):
        base_networks = {"unet": UNet2DConditionModel.from_config(config)}
    rows = [line.split() for line in (DATA / "sdxl_unet_keys.txt").read_text().splitlines()]
    assert native_names(base_networks["unet"]) == {path: native for path, native in rows}
    base = BaseNames(base_networks, {"kohya": {f"unet.{path}": f"unet.{native}" for path, native in rows}})
    names = {f"lora_unet_{native.replace('.', '_')}": f"unet.{path}" for path, native in rows}
    layers = layers_of(base_networks)
    tensors = KOHYA.write({path: empty(layers[path]) for path in names.values()}, base)[0].tensors
    assert {name.partition(".")[0] for name in tensors} == set(names) and len(names) == len(layers) == 794
    index = LayerIndex(base)
    assert {name: index.find(name) for name in names} == {name: {path} for name, path in names.items()}


def empty(layer: Layer) -> LoraFactors:
    out, *inside = layer.weight.shape
    return LoraFactors(torch.empty(1, *inside), torch.empty(out, 1, *(1 for _ in inside[1:])), 1.0)


@pytest.mark.parametrize("root", ["lora_te_", "lora_te1_", "text_encoder."])
def test_the_only_text_encoder_of_a_base_is_the_first_whatever_its_number(root: str) -> None:
    """SDXL's refiner has the second one alone."""
    base = BaseNames({"text_encoder_2": nn.ModuleDict({"encoder": nn.ModuleDict({"fc1": nn.Linear(6, 5)})})})
    own, name = factors(), "encoder.fc1" if root.endswith(".") else "text_model_encoder_fc1"
    tensors = {f"{root}{name}.lora_down.weight": own.down, f"{root}{name}.lora_up.weight": own.up}
    assert list(read(tensors, base)) == ["text_encoder_2.encoder.fc1"]


def test_a_file_that_mixes_the_names_of_sdxl_s_own_code_and_diffusers_is_read_whole() -> None:
    """diffusers drops the former, or raises, where both are in one file (``_maybe_map_sgm_blocks_to_diffusers``)."""
    config = json.loads((DATA / "sdxl_unet_config.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    names = native_names(unet)
    base = BaseNames({"unet": unet}, {"kohya": {f"unet.{path}": f"unet.{name}" for path, name in names.items()}})
    tensors, layers = {}, layers_of(base.networks)
    for number, (full, layer) in enumerate(layers.items()):
        path = full.removeprefix("unet.")
        name = f"lora_unet_{(path if number % 2 else names[path]).replace('.', '_')}"
        places = (1,) * (layer.weight.ndim - 2)
        tensors[f"{name}.lora_down.weight"] = torch.ones(1, *layer.weight.shape[1:])
        tensors[f"{name}.lora_up.weight"] = torch.ones(layer.weight.shape[0], 1, *places)
    assert any("Conv2d" in type(layer).__name__ for layer in layers.values())
    assert read(tensors, base).keys() == layers.keys()
