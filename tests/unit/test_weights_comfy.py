"""ComfyUI's and kohya's formats: of each layer of full-size bases the name that the programs' own key maps have."""

from __future__ import annotations

import pytest
import torch

from tests.errors import raises_code
from tests.keys import FAMILIES, comfy_keys, golden_layers
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import Layer
from veneer.family.layer_names import published_names
from veneer.weights.formats.comfy import COMFY
from veneer.weights.formats.kohya import KOHYA
from veneer.weights.formats.names import file_path
from veneer.weights.formats.protocol import BaseNames, Format


def empty(layer: Layer, alpha: float) -> LoraFactors:
    out, *inside = layer.weight.shape
    down, up = (1, *inside), (out, 1, *(1 for _ in inside[1:]))
    return LoraFactors(torch.empty(down, device="meta"), torch.empty(up, device="meta"), alpha)


def layer_names(format: Format, family: str) -> dict[str, str]:
    """The path of each layer by its name in a file: each has an alpha of its own, by which it is known."""
    base = published_names(FAMILIES[family])
    layers = {file_path(path): layer for path, layer in layers_of(base.networks).items()}
    paths = [golden.path for golden in golden_layers(family)]
    (file,) = format.write({path: empty(layers[path], alpha) for alpha, path in enumerate(paths, 1)}, base)
    alphas = {name.removesuffix(".alpha"): t for name, t in file.tensors.items() if name.endswith(".alpha")}
    assert set(file.tensors) == {
        f"{name}.{part}" for name in alphas for part in ("alpha", "lora_down.weight", "lora_up.weight")
    }
    assert set(file.metadata) == {"format"}  # ComfyUI reads none
    return {name: paths[int(alpha) - 1] for name, alpha in alphas.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_comfy_finds_each_layer_of_a_file(family: str) -> None:
    found = {name: comfy_keys(family)[name].path for name in layer_names(COMFY, family)}
    assert found == layer_names(COMFY, family)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_kohya_finds_each_layer_of_a_file(family: str) -> None:
    assert layer_names(KOHYA, family) == {golden.kohya: golden.path for golden in golden_layers(family)}


def test_a_family_s_own_names_are_written() -> None:
    layer = torch.nn.Linear(3, 2)
    networks = {"transformer": torch.nn.ModuleDict({"to_q": layer})}
    names = {"comfy": {"transformer.to_q": "diffusion_model.blocks.0.q"}}
    (file,) = COMFY.write({"transformer.to_q": empty(layer, 1.0)}, BaseNames(networks, names), "mine")
    assert {name.partition(".lora_")[0].removesuffix(".alpha") for name in file.tensors} == {
        "diffusion_model.blocks.0.q"
    }
    assert file.name == "mine_comfyui.safetensors"


def test_it_takes_a_base() -> None:
    with raises_code("weights.needs_base"):
        COMFY.write({"transformer.to_q": empty(torch.nn.Linear(3, 2), 1.0)})
