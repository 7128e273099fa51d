"""Families x methods x formats: each cell is a round trip without any difference, or is refused as the table says."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import save_file
from torch import Tensor

from tests.adapter_methods import filled, parts_for
from tests.bases import write_tiny_flux, write_tiny_sdxl
from tests.errors import raises_code
from tools.reference import methods
from veneer.adapter.layers import bias_of, weighted_layers_of
from veneer.adapter.protocol import LayerAdapter
from veneer.adapter.registry import METHODS
from veneer.base import path as bundled
from veneer.family.flux import Flux
from veneer.family.loading import load_base
from veneer.weights.file import AdapterFile, load, save
from veneer.weights.formats.protocol import BaseNames
from veneer.weights.formats.registry import FORMATS
from veneer.weights.formats.tensors import adapter_of

LAYERS = {
    "sd": ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "text_encoder.encoder.layers.0.mlp.fc1"),
    "sdxl": (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
    ),
    "flux": ("transformer.transformer_blocks.0.attn.to_out.0", "transformer.single_transformer_blocks.0.proj_out"),
}
NORMS = {
    "sd": ("unet.mid_block.attentions.0.transformer_blocks.0.norm1", "unet.conv_norm_out"),
    "sdxl": ("unet.mid_block.attentions.0.norm", "unet.mid_block.resnets.0.norm1"),
    "flux": (),
}
"""Norms with a bias, whose names a family's own code has otherwise than diffusers."""


@cache
def base_of(family: str) -> BaseNames:
    if family == "sd":
        return BaseNames.of(load_base(str(bundled())).networks)
    with TemporaryDirectory() as folder:
        if family == "sdxl":
            return BaseNames.of(load_base(str(write_tiny_sdxl(Path(folder, "base")))).networks)
        place = write_tiny_flux(Path(folder, "base"))
        return BaseNames.of(Flux(FluxPipeline.from_pretrained(place).components).networks)


@cache
def layers_of_base(family: str) -> dict[str, Any]:
    return dict(weighted_layers_of(base_of(family).networks))


def adapter_for(method: str, layer: Any, seed: int) -> LayerAdapter:
    out = len(layer.weight)
    shapes = parts_for(out, 1 if method == "norm" else layer.weight[0].numel())[method]
    parts = filled(shapes, seed)
    parts |= (
        {"alpha": torch.tensor(1.0)} if "alpha" in parts and "oft_blocks" not in parts else {}
    )  # alpha / 2 is exact
    adapter = adapter_of("x", parts, lambda _: None).fitted(tuple(layer.weight.shape))
    assert adapter is not None
    return adapter


def weights_for(family: str, method: str) -> dict[str, LayerAdapter]:
    paths = NORMS[family] if method == "norm" else LAYERS[family]
    every = layers_of_base(family)
    needs_bias = {"full", "norm", "biased"}
    return {
        path: adapter_for(method, every[path], seed)
        for seed, path in enumerate(paths)
        if method not in needs_bias or bias_of(every[path]) is not None
    }


def effect(adapter: LayerAdapter, layer: Any) -> list[Tensor]:
    weight, bias = layer.weight.detach().float(), bias_of(layer)
    change = None if bias is None else adapter.delta_bias(bias.detach().float())
    return [adapter.delta_weight(weight), *([] if change is None else [change])]


def written(method: str) -> set[str]:
    if method == "biased":
        return {"diffusers", "kohya", "comfy", "peft"}
    return set() if method == "ia3_of_peft" else set(methods.formats_of(METHODS[method]))


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_each_cell_is_a_round_trip_or_is_refused(method: str, format: str, family: str, tmp_path: Path) -> None:
    base, every, weights = base_of(family), layers_of_base(family), weights_for(family, method)
    if not weights:
        assert (family, method) == ("flux", "norm")  # its norms of queries and keys have no bias, the others no weight
        return
    place = tmp_path / FORMATS[format].file_name("mine")
    if format not in written(method) and method != "dylora":
        with raises_code("weights.method_not_in_format"):
            save(AdapterFile(weights), place, format, base)
        return
    if format == "peft":  # a folder for each network
        weights = dict(list(weights.items())[:1])
    save(AdapterFile(weights), place, format, base)
    back = load(place, base.networks, base.key_names).weights
    assert back.keys() == weights.keys()
    for path, adapter in weights.items():
        for own, other in zip(effect(adapter, every[path]), effect(back[path], every[path]), strict=True):
            assert torch.equal(own, other), path
        assert math.isfinite(float(own.abs().sum()))


def test_norms_have_the_names_of_the_model_s_own_code_where_kohya_s_files_have_them() -> None:
    (file,) = FORMATS["kohya"].write(weights_for("sdxl", "norm"), base_of("sdxl"))
    layers = {name.partition(".")[0] for name in file.tensors}
    assert layers == {"lora_unet_middle_block_1_norm", "lora_unet_middle_block_0_in_layers_0"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].endings.get("kohya")])
@torch.no_grad()
def test_narrow_types_are_read_to_the_number(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, every, weights = base_of("sd"), layers_of_base("sd"), weights_for("sd", method)
    (file,) = FORMATS["kohya"].write(weights, base)
    wide = {name: tensor.to(dtype if tensor.ndim else tensor.dtype) for name, tensor in file.tensors.items()}
    save_file(wide, tmp_path / "narrow.safetensors")
    save_file({name: tensor.to(torch.float32) for name, tensor in wide.items()}, tmp_path / "wide.safetensors")
    narrow, expected = (load(tmp_path / f"{name}.safetensors", base.networks).weights for name in ("narrow", "wide"))
    for path, adapter in expected.items():
        given = effect(narrow[path].to("cpu", torch.float32), every[path])
        for own, other in zip(given, effect(adapter, every[path]), strict=True):
            assert torch.equal(own, other), path
