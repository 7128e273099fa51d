"""Any adapter in any format comes back from any other with the same bits, and other readers find what was written."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.bases import write_tiny_flux, write_tiny_sdxl
from tests.errors import raises_code
from veneer.adapter.dora import DoraFactors
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import AdapterWeights, Layer, LayerAdapter
from veneer.family.layer_names import names_of_base
from veneer.verbs.convert import convert_adapter
from veneer.weights.file import FILE_NAME, AdapterFile, load, save
from veneer.weights.formats.protocol import BaseNames
from veneer.weights.formats.registry import FORMATS
from veneer.weights.formats.tensors import adapter_of

LAYERS = {
    "unet": ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1", "conv_in"),
    "text_encoder": ("encoder.layers.0.self_attn.out_proj",),
    "text_encoder_2": ("text_model.encoder.layers.0.self_attn.out_proj",),
}


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sdxl(tmp_path_factory.mktemp("base") / "sdxl")


@pytest.fixture(scope="module")
def base(tiny_sdxl: Path) -> BaseNames:
    return names_of_base(str(tiny_sdxl))


def factors(layer: Layer, rank: int, alpha: float, dtype: torch.dtype, seed: int, dora: bool) -> LayerAdapter:
    out, *inside = layer.weight.shape
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *inside, generator=generator).to(dtype)
    up = torch.randn(out, rank, *(1 for _ in inside[1:]), generator=generator).to(dtype)
    lora = LoraFactors(down, up, alpha)
    if not dora:
        return lora
    return DoraFactors(lora, torch.rand(out, *(1 for _ in inside), generator=generator).to(dtype) + 0.5)


def adapter(base: BaseNames, ranks: list[int], alphas: list[float], dtype: torch.dtype, dora: bool) -> AdapterWeights:
    layers = layers_of(base.networks)
    paths = [f"{network}.{path}" for network, inner in LAYERS.items() for path in inner]
    return {
        path: factors(layers[path], rank, alpha, dtype, seed, dora)
        for seed, (path, rank, alpha) in enumerate(zip(paths, ranks, alphas, strict=True))
    }


def same(one: AdapterWeights, other: AdapterWeights) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[path].state_dict()[name])
        for path, each in one.items()
        for name, tensor in each.state_dict().items()
    )


ALPHA = st.one_of(st.floats(1e-3, 1e3), st.integers(1, 128).map(float), st.floats(-4.0, -0.01))
EDGES = list(itertools.product(FORMATS, FORMATS))


@given(
    st.lists(st.integers(1, 4), min_size=5, max_size=5),
    st.lists(ALPHA, min_size=5, max_size=5),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.booleans(),
    st.sampled_from(EDGES),
)
@settings(max_examples=40)
@pytest.mark.slow
def test_any_way_and_back_keeps_every_bit(
    base: BaseNames,
    tiny_sdxl: Path,
    tmp_path_factory: pytest.TempPathFactory,
    ranks: list[int],
    alphas: list[float],
    dtype: torch.dtype,
    dora: bool,
    ways: tuple[str, str],
) -> None:
    weights = adapter(base, ranks, alphas, dtype, dora)
    check_ways(weights, ways, base, tiny_sdxl, tmp_path_factory.mktemp("ways"))


@pytest.mark.parametrize(("dtype", "dora"), [(torch.float32, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("ways", [("diffusers", "peft"), ("comfy", "diffusers")])
def test_a_way_and_back_keeps_every_bit(
    base: BaseNames, tiny_sdxl: Path, tmp_path: Path, dtype: torch.dtype, dora: bool, ways: tuple[str, str]
) -> None:
    """Some of the ways that the slow test draws, with strengths that no float has."""
    weights = adapter(base, [1, 2, 3, 4, 3], [0.3, -5.0, 1 / 3, 7.0, 100.1], dtype, dora)
    check_ways(weights, ways, base, tiny_sdxl, tmp_path)


def check_ways(weights: AdapterWeights, ways: tuple[str, str], base: BaseNames, tiny_sdxl: Path, folder: Path) -> None:
    save(AdapterFile(weights), folder / "0.safetensors", "kohya", base)
    place = folder / "0.safetensors"
    for number, way in enumerate((*ways, "kohya"), 1):
        place = convert_adapter(place, folder / str(number), way, base=str(tiny_sdxl)).path
    assert same(load(place, base.networks, base.key_names).weights, weights)
    assert load_file(place).keys() == load_file(folder / "0.safetensors").keys()


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("to", FORMATS)
def test_other_readers_find_what_was_written(
    base: BaseNames, tiny_sdxl: Path, tmp_path: Path, to: str, dora: bool
) -> None:
    weights = adapter(base, [1, 2, 3, 4, 2], [0.3, 5.0, 3.0, 7.0, 1.0], torch.float32, dora)
    save(AdapterFile(weights), tmp_path / "x.safetensors", "kohya", base)
    done = convert_adapter(tmp_path / "x.safetensors", tmp_path / to, to, base=str(tiny_sdxl), verify=True)
    assert done.layers == 5 and done.rounding == 0
    judge, *others = done.readers
    assert judge.layers == 5 and judge.difference < 1e-5
    assert [each.reader for each in others] == (["diffusers"] if to == "kohya" and not dora else [])
    assert not any(each.agrees for each in others), "of kohya's files it takes one alpha for several layers"


def test_diffusers_reads_kohya_s_files_of_one_alpha(base: BaseNames, tiny_sdxl: Path, tmp_path: Path) -> None:
    weights = adapter(base, [2] * 5, [0.7] * 5, torch.float32, False)
    save(AdapterFile(weights), tmp_path / FILE_NAME)
    done = convert_adapter(tmp_path, tmp_path / "x.safetensors", "kohya", base=str(tiny_sdxl), verify=True)
    assert [(each.reader, each.agrees) for each in done.readers] == [("LyCORIS", True), ("diffusers", True)]


@pytest.mark.parametrize("dora", [False, True])
def test_layers_that_are_one_in_files_are_judged_too(tmp_path: Path, dora: bool) -> None:
    """Query and key share a matrix with a value that has no adapter; of the last norm the halves are swapped."""
    place = write_tiny_flux(tmp_path / "flux")
    names = names_of_base(str(place))
    layers = layers_of(names.networks)
    block = "transformer.transformer_blocks.0.attn"
    paths = [f"{block}.to_q", f"{block}.to_k", f"{block}.to_out.0", "transformer.norm_out.linear"]
    paths += [f"{block}.to_v"] if dora else []
    weights = {path: factors(layers[path], 2, 1 / 3, torch.float32, seed, dora) for seed, path in enumerate(paths)}
    save(AdapterFile(weights), tmp_path / "x.safetensors")
    done = convert_adapter(tmp_path / "x.safetensors", tmp_path / "k", "kohya", base=str(place), verify=True)
    assert done.readers[0].reader == "LyCORIS" and done.readers[0].layers == len(paths)
    assert done.readers[0].agrees, done.readers[0].finding


def test_what_no_reader_computes_is_not_said_to_be_verified(base: BaseNames, tiny_sdxl: Path, tmp_path: Path) -> None:
    path = next(path for path in adapter(base, [1] * 5, [1.0] * 5, torch.float32, False) if path.endswith("to_q"))
    size = layers_of(base.networks)[path].weight.shape[0]
    blocks = {"oft_blocks": torch.randn(1, size // 4, 4, 4), "alpha": torch.tensor(0.0)}
    save(AdapterFile({path: adapter_of("x", blocks, lambda _: None)}), tmp_path / "x.safetensors", "kohya", base)
    with raises_code("convert.no_reader"):
        convert_adapter(tmp_path / "x.safetensors", tmp_path / "c", "comfy", base=str(tiny_sdxl), verify=True)


def test_a_reader_that_finds_something_else_is_told(
    base: BaseNames, tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = adapter(base, [2] * 5, [1.0] * 5, torch.float32, False)
    save(AdapterFile(weights), tmp_path / "x.safetensors", "kohya", base)
    monkeypatch.setattr("veneer.verbs.convert.save", lambda file, *rest: save(doubled(file), *rest))
    with raises_code("convert.not_verified") as caught:
        convert_adapter(
            tmp_path / "x.safetensors", tmp_path / "y.safetensors", "diffusers", base=str(tiny_sdxl), verify=True
        )
    assert "diffusers does not find in it what was: 5 layers, in which W + delta W differs by at most 1e+00" in str(
        caught.value
    )


def doubled(file: AdapterFile) -> AdapterFile:
    weights = {path: LoraFactors(each.down, each.up * 2, each.alpha) for path, each in file.weights.items()}
    return AdapterFile(weights, file.metadata)


def test_narrower_numbers_say_what_they_lost(base: BaseNames, tiny_sdxl: Path, tmp_path: Path) -> None:
    weights = adapter(base, [2] * 5, [1.0] * 5, torch.float32, False)
    save(AdapterFile(weights), tmp_path / FILE_NAME)
    for dtype, lost in (("float32", 0.0), ("float16", 2**-11), ("bfloat16", 2**-8)):
        done = convert_adapter(tmp_path, tmp_path / dtype, "comfy", base=str(tiny_sdxl), dtype=dtype, verify=True)
        assert lost / 4 <= done.rounding <= lost
        tensors = load_file(done.path)
        assert {tensor.dtype for name, tensor in tensors.items() if not name.endswith(".alpha")} == {
            getattr(torch, dtype)
        }
    with raises_code("weights.unwritten_dtype"):
        convert_adapter(tmp_path, tmp_path / "x.safetensors", "kohya", dtype="float8_e4m3fn")


def test_names_are_those_that_people_expect(base: BaseNames, tiny_sdxl: Path, tmp_path: Path) -> None:
    weights = {
        path: each
        for path, each in adapter(base, [2] * 5, [2.0] * 5, torch.float32, False).items()
        if path.startswith("unet.")
    }
    run = tmp_path / "cats"
    save(AdapterFile(weights), run / FILE_NAME)
    options = {"base": str(tiny_sdxl)}
    for to, name in (("kohya", "cats.safetensors"), ("comfy", "cats_comfyui.safetensors")):
        assert convert_adapter(run, tmp_path / "out", to, **options).path == tmp_path / "out" / name
    assert convert_adapter(run, tmp_path / "out", "diffusers").path == tmp_path / "out" / FILE_NAME
    assert convert_adapter(run, tmp_path / "new.safetensors", "kohya", **options).path == tmp_path / "new.safetensors"
    assert (convert_adapter(run, tmp_path / "peft", "peft").path / "adapter_config.json").is_file()


def test_mistakes_are_told_before_anything_is_read(base: BaseNames, tmp_path: Path) -> None:
    save(AdapterFile({"unet.x": LoraFactors(torch.ones(1, 2), torch.ones(3, 1), 1.0)}), tmp_path / FILE_NAME)
    with raises_code("output.exists"):
        convert_adapter(tmp_path, tmp_path, "diffusers")
    with raises_code("weights.unknown_format"):
        convert_adapter(tmp_path, tmp_path / "x", "onnx")
    with raises_code("convert.not_a_folder"):
        convert_adapter(tmp_path, tmp_path / "x.safetensors", "peft")
    with raises_code("weights.needs_base"):
        convert_adapter(tmp_path, tmp_path / "x.safetensors", "kohya")
    with raises_code("weights.needs_base"):
        convert_adapter(tmp_path, tmp_path / "y.safetensors", "diffusers", verify=True)


def test_a_file_of_a_published_architecture_needs_no_base(tmp_path: Path) -> None:
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{layer}.lora_down.weight": torch.randn(2, 768), f"{layer}.lora_up.weight": torch.randn(320, 2)}
    save_file({**tensors, f"{layer}.alpha": torch.tensor(1)}, tmp_path / "x.safetensors")
    done = convert_adapter(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "diffusers", verify=True)
    assert [each.reader for each in done.readers] == ["diffusers"]


def test_a_method_that_a_format_cannot_hold_is_called_by_its_name(tmp_path: Path) -> None:
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    parts = {"hada_w1_a": (320, 2), "hada_w1_b": (2, 768), "hada_w2_a": (320, 2), "hada_w2_b": (2, 768)}
    save_file({f"{layer}.{part}": torch.randn(shape) for part, shape in parts.items()}, tmp_path / "x.safetensors")
    with raises_code("weights.method_not_in_format", "LoHa"):
        convert_adapter(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "diffusers")
    assert not (tmp_path / "y.safetensors").exists()


def test_a_file_that_a_reader_cannot_read_is_told(base: BaseNames, tiny_sdxl: Path, tmp_path: Path) -> None:
    """diffusers knows a text encoder's layers by those of its attention, and refuses a file without any."""
    path = "text_encoder.encoder.layers.0.mlp.fc1"
    weights = {path: factors(layers_of(base.networks)[path], 2, 1.0, torch.float32, 0, False)}
    save(AdapterFile(weights), tmp_path / FILE_NAME)
    with raises_code("convert.not_verified", "Could not automatically infer state dict type"):
        convert_adapter(tmp_path, tmp_path / "x.safetensors", "diffusers", base=str(tiny_sdxl), verify=True)
