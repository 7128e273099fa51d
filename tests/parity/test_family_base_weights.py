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
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import load_file, save_file
from torch import nn

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


def flux_names(tmp_path: Path) -> dict[str, int]:
    """The names in a file of FLUX.1, with rows of its full width."""
    tiny = load_file(write_flux_file(write_tiny_flux(tmp_path / "flux"), tmp_path / "flux.safetensors"))
    return {name: len(tensor) * 96 if len(tensor) % 32 == 0 else len(tensor) for name, tensor in tiny.items()}


def flux2_names(tmp_path: Path) -> dict[str, int]:
    """The names in a file of FLUX.2, of two blocks of each kind."""
    inner = ("qkv", "proj", "norm.query_norm", "norm.key_norm")
    blocks = [f"double_blocks.{n}.{side}_attn.{each}" for n in range(2) for side in ("img", "txt") for each in inner]
    blocks += [f"double_blocks.{n}.{side}_mlp.{each}" for n in range(2) for side in ("img", "txt") for each in (0, 2)]
    inner = ("linear1", "linear2", "norm.query_norm", "norm.key_norm")
    blocks += [f"single_blocks.{n}.{each}" for n in range(2) for each in inner]
    top = ["img_in", "txt_in", "time_in.in_layer", "time_in.out_layer", "guidance_in.in_layer", "guidance_in.out_layer"]
    top += ["double_stream_modulation_img.lin", "double_stream_modulation_txt.lin", "single_stream_modulation.lin"]
    top += ["final_layer.linear", "final_layer.adaLN_modulation.1"]
    return {f"{name}.{'scale' if '_norm' in name else 'weight'}": 48 for name in [*top, *blocks]}


def sd3_names(tmp_path: Path) -> dict[str, int]:
    """The names in a file of Stable Diffusion 3.5, of two blocks, the last of which makes nothing more of the text."""
    x = ("adaLN_modulation.1", "attn.qkv", "attn.proj", "attn.ln_q", "attn.ln_k", "mlp.fc1", "mlp.fc2")
    dual = ("attn2.qkv", "attn2.proj", "attn2.ln_q", "attn2.ln_k")
    names = [f"joint_blocks.{n}.x_block.{each}" for n in range(2) for each in (*x, *dual)]
    names += [f"joint_blocks.0.context_block.{each}" for each in x]
    names += [f"joint_blocks.1.context_block.{each}" for each in x[:2]]
    names += [f"joint_blocks.1.context_block.attn.{each}" for each in ("ln_q", "ln_k")]
    names += ["x_embedder.proj", "context_embedder", "final_layer.linear", "final_layer.adaLN_modulation.1"]
    names += [f"{each}_embedder.mlp.{place}" for each in "ty" for place in (0, 2)]
    kinds = {name: ("weight",) if ".ln_" in name else ("weight", "bias") for name in names}
    return {f"{name}.{kind}": 48 for name in names for kind in kinds[name]} | {"pos_embed": 48}


THIN = {
    "flux": (flux_names, convert_flux_transformer_checkpoint_to_diffusers),
    "flux2": (flux2_names, convert_flux2_transformer_checkpoint_to_diffusers),
    "sd3": (sd3_names, convert_sd3_transformer_checkpoint_to_diffusers),
}


@pytest.mark.parametrize("family", THIN)
def test_fused_layers_are_cut_as_diffusers_cuts_them(family: str, tmp_path: Path) -> None:
    """Layers as high as they are, but thin: diffusers' own converters split rows, whatever the columns are."""
    names, convert = THIN[family]
    numbers = torch.Generator().manual_seed(0)
    thin = {name: torch.randn(rows, 2, generator=numbers) for name, rows in names(tmp_path).items()}
    save_file(thin, tmp_path / "thin.safetensors")
    expected = convert(dict(thin))
    found = BaseWeights.open(str(tmp_path / "thin.safetensors"))
    assert {name.removeprefix("transformer.") for name in found.stored} == expected.keys()
    for name, tensor in expected.items():
        layer, _, part = name.rpartition(".")
        assert torch.equal(found.read(f"transformer.{layer}", part), tensor), name


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
