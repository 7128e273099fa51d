"""Each weight that is read out of a base's files is, bit for bit, the one that diffusers loads from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.bases import write_flux_file, write_single_file, write_tiny_flux, write_tiny_sdxl
from veneer.family.base_weights import BaseWeights
from veneer.family.single_file_layout import single_file_layout

DATA = Path(__file__).parents[1] / "data"
KINDS = ("StableDiffusionPipeline", "second", "StableDiffusionXLPipeline")


def assert_each_weight(found: BaseWeights, networks: Mapping[str, nn.Module]) -> None:
    """Every parameter of the networks, in any order, with the same shape and bits; none more."""
    own = {
        f"{name}.{path}": tensor for name, network in networks.items() for path, tensor in network.named_parameters()
    }
    assert found.stored.keys() == own.keys()
    for name, tensor in own.items():
        layer, _, part = name.rpartition(".")
        assert found.shape(layer, part) == tuple(tensor.shape), name
        read = found.read(layer, part)
        assert read.dtype == tensor.dtype == found.dtype(layer, part) and torch.equal(read, tensor), name


def networks_of(pipeline: Any) -> dict[str, nn.Module]:
    names = ("unet", "transformer", "text_encoder", "text_encoder_2")
    return {name: getattr(pipeline, name) for name in names if getattr(pipeline, name, None) is not None}


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sdxl(tmp_path_factory.mktemp("xl"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_of_stable_diffusion(
    kind: str, dtype: torch.dtype, tiny_base: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    folder = tiny_sdxl if "XL" in kind else tiny_base
    file = write_single_file(folder, tmp_path / "base.safetensors", is_second=kind == "second")
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    pipeline_class = getattr(diffusers, kind, diffusers.StableDiffusionPipeline)
    extra = {} if "XL" in kind else {"safety_checker": None}
    pipeline = pipeline_class.from_single_file(str(file), config=str(folder), torch_dtype=dtype, **extra)
    assert_each_weight(BaseWeights.open(str(file)), networks_of(pipeline))


@pytest.mark.parametrize("shards", [False, True])
def test_a_folder(shards: bool, tiny_sdxl: Path, tmp_path: Path) -> None:
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    if shards:
        pipeline.save_pretrained(tmp_path, max_shard_size="100KB")
        assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 2
    assert_each_weight(BaseWeights.open(str(tmp_path if shards else tiny_sdxl)), networks_of(pipeline))


@pytest.mark.parametrize("stem", ["", "model.diffusion_model."])
def test_a_single_file_of_flux(stem: str, tmp_path: Path) -> None:
    """diffusers reads such files with its own width of 3072 only; the folder's transformer has the same weights."""
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(
        write_tiny_flux(tmp_path / "flux"), subfolder="transformer"
    )
    file = write_flux_file(tmp_path / "flux", tmp_path / "flux.safetensors", stem)
    assert_each_weight(BaseWeights.open(str(file)), {"transformer": transformer})


def test_flux_s_fused_layers_are_cut_as_diffusers_cuts_them(tmp_path: Path) -> None:
    """Layers of the full size, but thin: diffusers' own converter splits rows, whatever the columns are."""
    tiny = load_file(
        write_flux_file(write_tiny_flux(tmp_path / "flux"), tmp_path / "flux.safetensors", "model.diffusion_model.")
    )
    numbers = torch.Generator().manual_seed(0)
    thin = {name: torch.randn(_rows(name, tensor), 2, generator=numbers) for name, tensor in tiny.items()}
    save_file(thin, tmp_path / "thin.safetensors")
    expected = convert_flux_transformer_checkpoint_to_diffusers(dict(thin))
    found = BaseWeights.open(str(tmp_path / "thin.safetensors"))
    assert {name.removeprefix("transformer.") for name in found.stored} == expected.keys()
    for name, tensor in expected.items():
        layer, _, part = name.rpartition(".")
        assert torch.equal(found.read(f"transformer.{layer}", part), tensor), name


def _rows(name: str, tensor: Tensor) -> int:
    return tensor.shape[0] * 3072 // 32 if tensor.shape[0] % 32 == 0 else tensor.shape[0]


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_names_of_the_full_size_are_diffusers(name: str) -> None:
    """Without numbers: the converter of diffusers is given each name in place of its tensor, and renames it."""
    config = json.loads((DATA / f"{name}_unet_config.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    rows = dict(line.split() for line in (DATA / f"{name}_unet_keys.txt").read_text().splitlines())
    layers = {f"model.diffusion_model.{native}" for native in rows.values()}
    stored = {f"{layer}.{end}" for layer in layers for end in ("weight", "bias")}
    converted = convert_ldm_unet_checkpoint({each: each for each in stored}, dict(unet.config))
    layout = single_file_layout(dict.fromkeys(stored, (1, 1)))
    assert {own.removeprefix("unet."): place.tensor for own, place in layout.items()} == converted
