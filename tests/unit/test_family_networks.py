"""A network that is quantised on its way from the disk is the one that is loaded whole and quantised then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel, T5Config, T5EncoderModel

from tests.bases import write_single_file, write_tiny_sdxl
from tests.errors import raises_code
from veneer.engine.quantization import FORMATS
from veneer.engine.quantized import quantization_of
from veneer.family import networks
from veneer.family.network_files import NetworkFiles
from veneer.family.networks import LoadOptions, load_network
from veneer.family.pipeline_folder import check_network_weights
from veneer.family.shards import Shards, weight_files

KINDS = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """The same classes, names, bits, buffers, and settings of parameters."""
    assert [type(module) for module in one.modules()] == [type(module) for module in other.modules()]
    assert not any(module.training for module in one.modules())
    for mine, theirs in (
        (dict(one.named_parameters()), dict(other.named_parameters())),
        (dict(one.named_buffers()), dict(other.named_buffers())),
        (one.state_dict(), other.state_dict()),
    ):
        assert list(mine) == list(theirs)
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype and tensor.requires_grad == theirs[name].requires_grad, name
            assert torch.equal(tensor, theirs[name]), name


def files_of(kind: Any, folder: Path, name: str) -> NetworkFiles:
    return NetworkFiles(kind, folder, name, check_network_weights(folder / name, kind))


def both(folder: Path, name: str, options: LoadOptions, kind: Any = None) -> tuple[nn.Module, nn.Module]:
    kind = kind or KINDS[name]
    files = files_of(kind, folder, name)
    streamed = networks._load_streamed(files, options.quantization, options)
    assert streamed is not None
    return streamed, networks._load_then_quantize(files, options.quantization, options)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", KINDS)
def test_every_format_of_both_libraries(format: str, name: str, tiny_base: Path) -> None:
    assert_same(*both(tiny_base, name, LoadOptions(quantization=format, networks=(name,))))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whatever_dtype_the_files_have(
    stored: torch.dtype, dtype: torch.dtype, tiny_base: Path, tmp_path: Path
) -> None:
    for name, kind in KINDS.items():
        network: Any = kind.from_pretrained(tiny_base, subfolder=name)
        network.to(stored).save_pretrained(tmp_path / name)
        assert_same(*both(tmp_path, name, LoadOptions(dtype, "bnb_nf4", (name,))))


def test_files_in_shards_and_weights_that_modules_share(tmp_path: Path) -> None:
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(tmp_path / "text_encoder", max_shard_size="10KB")
    assert len(weight_files(tmp_path / "text_encoder")) > 2
    options = LoadOptions(quantization="bnb_int8", networks=("text_encoder",))
    streamed, whole = both(tmp_path, "text_encoder", options, T5EncoderModel)
    assert_same(streamed, whole)
    assert streamed.shared.weight is streamed.encoder.embed_tokens.weight


def test_the_library_loads_what_names_its_weights_otherwise(tiny_base: Path, tmp_path: Path) -> None:
    """diffusers still knows the names that attention layers had in its first releases."""
    from diffusers import AutoencoderKL

    shutil.copytree(tiny_base / "vae", tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        return next((name.replace(f".{new}.", f".{was}.") for new, was in old.items() if f".{new}." in name), name)

    weights = load_file(path)
    assert {renamed(name) for name in weights} != weights.keys()
    save_file({renamed(name): weight for name, weight in weights.items()}, path, {"format": "pt"})
    options = LoadOptions(quantization="bnb_nf4", networks=("vae",))
    assert networks._load_streamed(files_of(AutoencoderKL, tmp_path, "vae"), "bnb_nf4", options) is None
    expected = load_network(AutoencoderKL, tiny_base, "vae", options)
    assert_same(load_network(AutoencoderKL, tmp_path, "vae", options), expected)


def drop(weights: dict[str, Any]) -> None:
    del weights["conv_in.weight"]


def add(weights: dict[str, Any]) -> None:
    weights["extra.weight"] = torch.zeros(1)


def reshape(weights: dict[str, Any]) -> None:
    weights["conv_in.weight"] = weights["conv_in.weight"][1:].contiguous()


@pytest.mark.parametrize("format", ["none", "bnb_nf4"])
@pytest.mark.parametrize(
    ("spoil", "code"),
    [(drop, "base.wrong_weights"), (add, "base.wrong_weights"), (reshape, "base.wrong_weights")],
)
def test_wrong_weights_are_refused_in_every_format(
    spoil: Callable[[dict[str, Any]], None], code: str, format: str, tiny_base: Path, tmp_path: Path
) -> None:
    from veneer.family.registry import load_family

    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    path = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    spoil(weights)
    save_file(weights, path, {"format": "pt"})
    with raises_code(code) as caught:
        load_family(str(base), LoadOptions(quantization=format, networks=("unet",)))
    assert "\n" not in str(caught.value)


def test_a_broken_index_of_shards_is_one_line(tiny_base: Path, tmp_path: Path) -> None:
    from veneer.family.registry import load_family

    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (base / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": 3}))
    with raises_code("base.broken_config"):
        load_family(str(base), LoadOptions(quantization="bnb_nf4", networks=("unet",)))


def test_tensors_come_one_at_a_time_and_in_order(tmp_path: Path) -> None:
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for place, file in enumerate(files):
        save_file({f"{name}{place}": torch.full((2, 3), float(place)) for name in "ab"}, file)
    shards = Shards(files)
    assert dict(shards.shapes) == dict.fromkeys(("a0", "b0", "a1", "b1"), (2, 3))
    assert [(name, float(tensor.mean())) for name, tensor in shards.stream(["b1", "a0", "b0"])] == [
        ("a0", 0.0),
        ("b0", 0.0),
        ("b1", 1.0),
    ]
    assert shards.map(["b1"])["b1"].tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("format", ["none", "bnb_nf4"])
def test_a_family_of_two_text_encoders_is_loaded_with_what_its_files_say(format: str, tmp_path: Path) -> None:
    from veneer.family.sdxl import StableDiffusionXL

    base = write_tiny_sdxl(tmp_path / "xl", "epsilon", zero_terminal_snr=False)
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": False}))
    family = StableDiffusionXL.load(base, LoadOptions(quantization=format, networks=("unet", "text_encoder_2")))
    assert {name: quantization_of(network) for name, network in family.networks.items()} == {
        "unet": format,
        "text_encoder": "none",
        "text_encoder_2": format,
    }
    assert family.pipeline().config.force_zeros_for_empty_prompt is False
    expected = family.encode_text(["a cat"])["pooled"]
    family.offload(("text_encoder", "text_encoder_2", "autoencoder"))
    offloaded = [bool(next(network.parameters()).isnan().all()) for network in family.networks.values()]
    assert offloaded == [False, True, True]  # what is quantised is quantised anew when it is read again
    assert torch.equal(family.encode_text(["a cat"])["pooled"], expected)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_single_file_is_quantised_to_the_bits_of_its_folder(stored: torch.dtype, tmp_path: Path) -> None:
    from veneer.family.registry import load_family

    base = write_tiny_sdxl(tmp_path / "xl", "epsilon", zero_terminal_snr=False)
    for path in base.glob("*/*.safetensors"):
        weights = {name: tensor.to(stored) for name, tensor in load_file(path).items()}
        save_file(weights, path, {"format": "pt"})
    options = LoadOptions(quantization="bnb_nf4", networks=("unet", "text_encoder_2"))
    folder, single = (
        load_family(str(place), options) for place in (base, write_single_file(base, base / "xl.safetensors"))
    )
    for name, network in folder.networks.items():
        assert quantization_of(single.networks[name]) == quantization_of(network)
        mine, theirs = single.networks[name].state_dict(), network.state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs) and mine.keys() == theirs.keys()
