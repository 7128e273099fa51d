"""Weights read out of a base's files by their layers' names: 8-bit ones, slices, and what is refused by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.bases import write_flux_file, write_tiny_flux
from tests.errors import raises_code
from veneer.adapter.layers import bias_of, weighted_layers_of
from veneer.family.base_weights import BaseWeights
from veneer.family.registry import load_family
from veneer.family.shards import WeightsFile
from veneer.family.single_file_layout import Place
from veneer.weights.formats.fused import Slice
from veneer.weights.formats.protocol import BaseNames

LAYER = "transformer.single_transformer_blocks.1.attn.to_k"
FUSED = "single_blocks.1.linear1"


@pytest.fixture(scope="module")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_flux(tmp_path_factory.mktemp("flux"))


def test_the_bundled_base_has_shapes_and_dtypes_without_a_number_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightsFile, "read", None)
    base = BaseWeights.open("bundled")
    assert base.shape("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q") == (256, 256)
    assert base.shape("unet.conv_in", "bias") == (128,)
    assert base.dtype("unet.conv_in") in (torch.float16, torch.float32)
    assert "unet.conv_in" in set(base.layers()) and "unet.conv_norm_out" not in set(base.layers())
    assert len(base.files) == 2


@pytest.mark.parametrize("level", ["", "text_model."])
def test_a_level_of_text_encoders_may_be_there_or_not(level: str, tiny_base: Path) -> None:
    base = BaseWeights.open(str(tiny_base))
    assert base.shape(f"text_encoder.{level}encoder.layers.0.self_attn.q_proj") == (32, 32)


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("by_row", [False, True])
def test_eight_bit_numbers_have_their_scale(ending: str, by_row: bool, tiny_flux: Path, tmp_path: Path) -> None:
    file = write_flux_file(tiny_flux, tmp_path / "flux.safetensors", dtype=torch.float8_e4m3fn)
    stored = load_file(file)
    rows = len(stored[f"{FUSED}.weight"])
    scale = torch.linspace(0.5, 2.0, rows)[:, None] if by_row else torch.tensor(0.25)
    save_file({**stored, f"{FUSED}.{ending}": scale, "scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}, file)
    base = BaseWeights.open(str(file))
    assert base.dtype(LAYER) == torch.float8_e4m3fn and base.shape(LAYER) == (32, 32)
    expected = stored[f"{FUSED}.weight"][32:64].float() * (scale[32:64] if by_row else scale)
    assert torch.equal(base.read(LAYER), expected)
    plain = base.read("transformer.x_embedder")
    assert plain.dtype == torch.float8_e4m3fn and torch.equal(plain.float(), stored["img_in.weight"].float())
    swapped = base.read("transformer.norm_out.linear").float()
    halves = stored["final_layer.adaLN_modulation.1.weight"].float().chunk(2)
    assert torch.equal(swapped, torch.cat([halves[1], halves[0]]))


def test_a_denoiser_under_diffusers_names(tiny_base: Path) -> None:
    file = tiny_base / "unet" / "diffusion_pytorch_model.safetensors"
    alone, folder = BaseWeights.open(str(file)), BaseWeights.open(str(tiny_base))
    assert alone.stored.keys() == {name for name in folder.stored if name.startswith("unet.")}
    assert torch.equal(alone.read("unet.conv_in"), folder.read("unet.conv_in"))


def test_a_weight_that_is_not_there(tiny_base: Path) -> None:
    base = BaseWeights.open(str(tiny_base))
    assert base.find("unet.no.such") is None
    with raises_code("base.no_such_layer"):
        base.read("unet.no.such")
    with raises_code("base.no_such_layer"):
        base.read("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "bias")


@pytest.mark.parametrize(
    "name, title",
    [
        ("double_blocks.0.img_attn.qkv.weight.quant_state.bitsandbytes__nf4", "nf4"),
        ("double_blocks.0.img_attn.qkv.weight.absmax", "nf4 or fp4"),
        ("double_blocks.0.img_attn.qkv.SCB", "LLM.int8"),
        ("double_blocks.0.img_attn.qkv.weight_scale_2", "nvfp4"),
        ("double_blocks.0.img_attn.qkv.qweight", "GPTQ or AWQ"),
    ],
)
def test_packed_numbers_are_called_by_their_format(name: str, title: str, tiny_flux: Path, tmp_path: Path) -> None:
    file = write_flux_file(tiny_flux, tmp_path / "flux.safetensors")
    save_file({**load_file(file), name: torch.zeros(1)}, file)
    with raises_code("base.quantised", f"quantised ({title})"):
        BaseWeights.open(str(file))


def test_integers_are_packed_numbers(tiny_flux: Path, tmp_path: Path) -> None:
    file = write_flux_file(tiny_flux, tmp_path / "flux.safetensors")
    stored = load_file(file)
    save_file({**stored, "img_in.weight": stored["img_in.weight"].to(torch.int8)}, file)
    with raises_code("base.quantised", "int8"):
        BaseWeights.open(str(file))


def test_gguf_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "flux.gguf").write_bytes(b"GGUF" + bytes(60))
    with raises_code("base.not_a_model", "GGUF"):
        BaseWeights.open(str(tmp_path / "flux.gguf"))


def _quantise(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"load_in_4bit": True}}))


def _pickle(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def _cut(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _empty(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def _no_networks(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    shutil.rmtree(folder / "text_encoder")


@pytest.mark.parametrize(
    "spoil, code",
    [
        (_quantise, "base.quantised"),
        (_pickle, "base.pickle"),
        (_cut, "base.cut_short"),
        (_empty, "base.no_weights"),
        (_no_networks, "base.not_a_model"),
    ],
)
def test_folders_that_cannot_be_read(spoil: Callable[[Path], None], code: str, tiny_base: Path, tmp_path: Path) -> None:
    spoil(Path(shutil.copytree(tiny_base, tmp_path / "base")))
    with raises_code(code):
        BaseWeights.open(str(tmp_path / "base"))


@pytest.mark.parametrize("name", ["encoder.conv_in.weight", "some.weight", "lora_unet_x.lora_up.weight"])
def test_files_that_are_no_base(name: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with raises_code("base.not_a_model"):
        BaseWeights.open(str(tmp_path / "x.safetensors"))


def test_a_file_that_becomes_shorter_is_told(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4, 4), "b": torch.zeros(4)}, tmp_path / "x.safetensors")
    file = WeightsFile.open(tmp_path / "x.safetensors")
    assert file.read("a", (1, 3)).shape == (2, 4)
    (tmp_path / "x.safetensors").write_bytes(b"")
    with raises_code("base.unreadable", "became shorter"):
        file.read("b")


@pytest.mark.parametrize("rows", [None, Slice("x", 2, 3, 8), Slice("x", 6, 4, 8)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_what_is_put_into_a_place_is_taken_from_it(rows: Slice | None, is_transposed: bool) -> None:
    place, stored = Place("x", rows, is_transposed), torch.randn(8, 3)
    weight = torch.randn(place.shape((8, 3)))
    before = stored.clone()
    place.put(weight, stored)
    assert torch.equal(place.take(stored), weight)
    assert int((stored != before).sum()) == weight.numel()


def test_networks_without_weights_have_the_base_s_layers(tiny_base: Path) -> None:
    base, family = BaseWeights.open(str(tiny_base)), load_family(str(tiny_base))
    found, own = weighted_layers_of(base.networks()), weighted_layers_of(family.networks)
    assert found.keys() == own.keys()
    for path, layer in own.items():
        assert found[path].weight.is_meta and found[path].weight.shape == layer.weight.shape
        assert (bias_of(found[path]) is None) == (bias_of(layer) is None)
    assert base.networks().key_names == BaseNames.of(family.networks).key_names


def test_a_single_file_says_what_its_layers_are_called(tiny_flux: Path, tmp_path: Path) -> None:
    base = BaseWeights.open(str(write_flux_file(tiny_flux, tmp_path / "flux.safetensors", "model.diffusion_model.")))
    names = base.networks().key_names["native"]
    assert names[LAYER] == Slice("transformer.single_blocks.1.linear1", 32, 32, 224)
    assert names["transformer.norm_out.linear"] == Slice("transformer.final_layer.adaLN_modulation.1", 32, 64, 64)
    assert names["transformer.x_embedder"] == "transformer.img_in"
