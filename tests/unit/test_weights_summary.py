"""What is said of an adapter file without its base: as loading it says, by another way, and without torch."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.errors import raises_code
from veneer.adapter.protocol import LayerAdapter
from veneer.cli.main import main
from veneer.verbs.info import write_norm_plot
from veneer.weights.file import AdapterFile, load, read_layers, save
from veneer.weights.formats.places import place_of
from veneer.weights.formats.registry import METADATA_KEYS
from veneer.weights.hashes import hashing
from veneer.weights.summary import _FORMAT_KEYS, info, read_names
from veneer.weights.tensors_file import open_tensors
from veneer.weights.training_summary import training_summary

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def lora(layer: str, seed: int, rank: int, kernel: tuple[int, ...] = (), *, core: bool = False) -> dict[str, Tensor]:
    """The tensors of one layer as kohya writes them, with an alpha that is not the rank."""
    generator = torch.Generator().manual_seed(seed)
    places = tuple(1 for _ in kernel)
    down = torch.randn(rank, 12, *(places if core else kernel), generator=generator)
    tensors = {"lora_down.weight": down, "lora_up.weight": torch.randn(9, rank, *places, generator=generator)}
    if core:
        tensors["lora_mid.weight"] = torch.randn(rank, rank, *kernel, generator=generator)
    named = {f"{layer}.{part}": tensor for part, tensor in tensors.items()}
    return named | {f"{layer}.alpha": torch.tensor(0.5 * rank)}


def many(dtype: torch.dtype) -> dict[str, Tensor]:
    """Layers of every shape: linear, convolution, Tucker's core, magnitudes over outputs and inputs."""
    tensors = lora("lora_unet_down_blocks_0_a", 0, 4) | lora("lora_unet_down_blocks_10_a", 1, 3, (3, 3))
    tensors |= lora("lora_unet_down_blocks_2_a", 2, 2, (3, 3), core=True) | lora("lora_te_layers_0_a", 3, 5)
    tensors |= lora("lora_te_layers_0_b", 4, 2)
    tensors |= {"lora_te_layers_0_a.dora_scale": torch.rand(9, 1), "lora_te_layers_0_b.dora_scale": torch.rand(1, 12)}
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def layers_in(path: Path) -> dict[str, LayerAdapter]:
    """A file's layers, loaded by torch."""
    with open_tensors(path) as file:
        return read_layers(file, read_names(file))


def products(path: Path) -> dict[str, float]:
    """The norm of (alpha/r) B A of each layer, taken of the product itself in float64."""
    found = {}
    for name, adapter in layers_in(path).items():
        factors: Any = getattr(adapter, "lora", adapter)
        product = factors.up.double().flatten(1) @ factors.down.double().flatten(1)
        found[name] = float(factors.alpha / factors.rank * product.norm())
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_is_what_loading_the_file_says(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(many(dtype), path, {"format": "pt", "note": "x"})
    told, layers = info(path), layers_in(path)
    assert {layer.name: layer.norm for layer in told.layers} == pytest.approx(products(path), rel=1e-5)
    assert {layer.name: dict(layer.hyperparameters) for layer in told.layers} == {
        name: dict(adapter.hyperparameters) for name, adapter in layers.items()
    }
    assert {layer.name: layer.method for layer in told.layers} == {name: a.method.title for name, a in layers.items()}
    assert told.parameters == sum(adapter.parameter_count for adapter in layers.values())
    assert (told.methods, told.networks, told.scales) == (("DoRA", "LoRA"), ("text_encoder", "unet"), (0.5,))
    assert told.metadata == {"note": "x"} and told.size_bytes == path.stat().st_size


def test_the_format_s_own_metadata_is_that_of_the_formats() -> None:
    assert _FORMAT_KEYS == METADATA_KEYS


def test_blocks_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    save_file(many(torch.float32), tmp_path / "x.safetensors")
    norms = info(tmp_path / "x.safetensors").norms
    assert [block for network, block in norms if network == "unet"] == [
        "down_blocks_0",
        "down_blocks_2",
        "down_blocks_10",
    ]
    squares = [norm**2 for name, norm in products(tmp_path / "x.safetensors").items() if "te_" in name]
    assert norms["text_encoder", "layers_0"] == pytest.approx(sum(squares) ** 0.5)


@pytest.mark.parametrize("size", [1e-37, 1e-30, 1e25, 3e38])
def test_a_norm_whose_square_float32_does_not_hold(size: float, tmp_path: Path) -> None:
    tensors = {"unet.x.lora_A.weight": torch.full((2, 12), size), "unet.x.lora_B.weight": torch.full((9, 2), 1.0)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert info(tmp_path / "x.safetensors").layers[0].norm == pytest.approx(2 * size * 108**0.5, rel=1e-6, abs=0)


PLACES = [
    ("unet.down_blocks.1.attentions.0.transformer_blocks.2.attn1.to_q", "unet", "down_blocks.1", "attn1.to_q"),
    ("unet.mid_block.resnets.0.conv1", "unet", "mid_block.resnets.0", "conv1"),
    ("unet.conv_in", "unet", "conv_in", "conv_in"),
    ("lora_unet_input_blocks_4_1_transformer_blocks_0_ff_net_0_proj", "unet", "input_blocks_4", "ff_net_0_proj"),
    ("lora_te1_text_model_encoder_layers_1_mlp_fc1", "text_encoder", "text_model_encoder_layers_1", "mlp_fc1"),
    ("lora_unet_double_blocks_3_img_attn_qkv", "unet", "double_blocks_3", "img_attn_qkv"),
    ("transformer.transformer_blocks.7.attn.to_k", "transformer", "transformer_blocks.7", "attn.to_k"),
    ("double_blocks.3.img_attn.qkv", None, "double_blocks.3", "img_attn.qkv"),
    ("text_encoder_3.encoder.block.5.layer.0.SelfAttention.q", "text_encoder_3", "encoder.block.5", "SelfAttention.q"),
]


@pytest.mark.parametrize(("layer", "network", "block", "kind"), PLACES)
def test_a_layer_s_place_is_told_by_its_name(layer: str, network: str | None, block: str, kind: str) -> None:
    place = place_of(layer, "kohya" if layer.startswith("lora_") else "diffusers")
    assert (place.network, place.block, place.kind) == (network, block, kind)


@pytest.mark.parametrize("size", [3000, 2**18, 2**20])
def test_hashes_are_those_of_a1111_and_civitai(size: int, tmp_path: Path) -> None:
    """A1111: modules/hashes.py for the whole file and behind the header, modules/sd_models.py for the legacy one."""
    path = tmp_path / "x.safetensors"
    save_file({"unet.x.lora_A.weight": torch.randn(1, size), "unet.x.lora_B.weight": torch.ones(2, 1)}, path)
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    told = info(path)
    assert told.sha256 == hashlib.sha256(content).hexdigest()
    legacy = hashlib.sha256(content[0x100000:0x110000]).hexdigest()
    assert told.hashes.by_name == {
        "SHA256": told.sha256.upper(),
        "AutoV1": legacy[:8].upper(),
        "AutoV2": told.sha256[:10].upper(),
        "AutoV3": hashlib.sha256(data).hexdigest()[:12].upper(),
    }


def test_a_hash_in_the_metadata_that_is_another_is_told(tmp_path: Path) -> None:
    """Two trainers wrote the hash of nothing, or of another file, and pictures then named a stranger's LoRA."""
    path, pair = tmp_path / "x.safetensors", lora("lora_unet_x", 0, 2)
    save_file(pair, path, {"sshs_model_hash": hashlib.sha256().hexdigest()})
    (note,) = info(path).notes
    assert "'e3b0c44298fc'" in note and info(path).hashes.data_sha256[:12] in note
    save_file(pair, path, {"sshs_model_hash": info(path).hashes.data_sha256})
    assert info(path).notes == ()


def test_hashing_ends_with_an_error_in_its_block(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    os.truncate(path, 2**36)  # sparse; hashing all of it would take a minute
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt), hashing({path: 8}):
        raise KeyboardInterrupt
    assert time.monotonic() - before < 5


TAGS = {"10_sks": {"sks": 20, " solo ": 3}, "2_more": {"solo": 9, "hat": 4, "bad": -1, "x": "y"}}
KOHYA = {
    "ss_tag_frequency": json.dumps(TAGS),
    "ss_base_model_version": "sd_v1", "ss_steps": "1000", "ss_learning_rate": "0.0001", "ss_seed": "None",
    "ss_network_module": "networks.lora", "modelspec.trigger_phrase": "sks", "modelspec.title": "A hat",
}  # fmt: skip


def test_a_training_is_told_from_the_keys_of_kohya_and_modelspec() -> None:
    told = training_summary(KOHYA)
    assert list(told.tags.items()) == [("sks", 20), ("solo", 12), ("hat", 4)]
    assert told.triggers == ("sks",)
    assert told.facts == {
        "title": "A hat",
        "base": "sd_v1",
        "kohya's module": "networks.lora",
        "steps": "1000",
        "learning rate": "0.0001",
    }


@pytest.mark.parametrize(
    "tags", ["", "{", "[1]", '{"a": [1]}', '{"a": {"b": 1e400}}', "[" * 10**5, "null", '{"a":' * 10**5]
)
def test_tags_that_make_no_sense_are_left_out(tags: str) -> None:
    assert training_summary({"ss_tag_frequency": tags}).tags == {}


def test_all_of_it_is_printed_and_is_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.safetensors"
    save_file(many(torch.float16), path, KOHYA | {"long": "y" * 10_000})
    assert main(["adapter", "info", str(path)]) == 0
    text = capsys.readouterr().out
    rows = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert rows["strength"] == "0.5" and rows["family"] == "Stable Diffusion 1" and rows["layers"] == "5"
    assert "\u2588" * 40 in rows["text_encoder.layers_0"] + rows["unet.down_blocks_2"] + rows["unet.down_blocks_10"]
    assert "(10,000 characters, which --json has)" in text and "y" * 1000 not in text
    assert main(["adapter", "info", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["hashes"]["AutoV3"] == rows["AutoV3"] and data["metadata"]["long"] == "y" * 10_000
    assert len(data["layers"]) == 5 and {each["strength"] for each in data["layers"]} == {0.5}
    assert data["training"]["tags"]["sks"] == 20


def test_norms_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, plot = tmp_path / "x.safetensors", tmp_path / "norms.png"
    save_file(many(torch.float16), path)
    assert main(["adapter", "info", str(path), "--plot", str(plot)]) == 0
    pixels = np.asarray(Image.open(plot).convert("RGB")).astype(int)
    lengths = [int(row.sum()) for row in (pixels == (0x25, 0x63, 0xA8)).all(axis=2)]
    bars = sorted({length for length in lengths if length > 1}, reverse=True)
    norms = sorted(info(path).norms.values(), reverse=True)
    assert bars == pytest.approx([761 * norm / norms[0] for norm in norms], abs=2)
    with raises_code("output.exists"):
        write_norm_plot(info(path), plot, "x")
    with raises_code("output.not_png"):
        write_norm_plot(info(path), tmp_path / "norms.svg", "x")


def test_many_blocks_do_not_make_a_picture_without_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, one = tmp_path / "x.safetensors", torch.ones(1, 1)
    save_file({f"unet.b.{n}.lora_{part}.weight": one.clone() for n in range(300) for part in "AB"}, path)
    write_norm_plot(info(path), tmp_path / "norms.png", "x" * 10_000)
    assert max(Image.open(tmp_path / "norms.png").size) < 8000
    assert main(["adapter", "info", str(path)]) == 0
    assert "and 100 more blocks, which --json has" in capsys.readouterr().out


PROGRAM = """
import sys; from veneer.cli.main import main
code = main(["adapter", "info", sys.argv[1]])
print(code, "torch" in sys.modules, "PIL" in sys.modules)
"""


def test_lora_and_dora_are_summed_up_without_torch(tmp_path: Path) -> None:
    save_file(many(torch.bfloat16), tmp_path / "x.safetensors", KOHYA)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "x.safetensors")]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.splitlines()[-1] == "0 False False"


@pytest.mark.slow
def test_a_large_file_takes_little_more_than_hashing_it(tmp_path: Path) -> None:
    """200 MB: at most 8 times as long as its SHA-256 takes, the start of the process taken off (measured: 2 to 4)."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"unet.blocks.{n}.{part}.weight": torch.randn(shape, generator=generator).half()
        for n in range(600)
        for part, shape in (("lora_A", (64, 1280)), ("lora_B", (1280, 64)))
    }
    path, small = tmp_path / "large.safetensors", tmp_path / "small.safetensors"
    save_file(weights, path)
    save_file(lora("lora_unet_x", 0, 2), small)
    assert path.stat().st_size > 190e6

    def seconds(file: Path) -> float:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        before = time.monotonic()
        command = [sys.executable, "-m", "veneer", "adapter", "info", str(file)]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return time.monotonic() - before

    before = time.monotonic()
    hashlib.sha256(path.read_bytes()).hexdigest()
    own = time.monotonic() - before
    # the best of three, for others use the machine as well
    assert min(seconds(path) for _ in range(3)) - min(seconds(small) for _ in range(3)) < 8 * own


def test_what_veneer_saves_tells_its_family_and_trigger(tmp_path: Path) -> None:
    adapters = read_layers_of(tmp_path)
    save(AdapterFile(adapters, {"veneer.trigger": "sks", "veneer.base": "x"}), tmp_path / "y.safetensors")
    told = info(tmp_path / "y.safetensors")
    assert told.training.triggers == ("sks",) and told.training.facts["base"] == "x"
    assert told.format == "diffusers" and not told.needs_base


def test_an_adapter_of_several_files_is_one(tmp_path: Path) -> None:
    """peft keeps one network in a folder; load reads them together as well."""
    digest = save(AdapterFile(two_networks(tmp_path), {"note": "x"}), tmp_path / "both", "peft")
    told = info(tmp_path / "both")
    assert (told.format, told.networks, told.targets, told.tensors) == ("peft", ("text_encoder", "unet"), 2, 4)
    assert told.sha256 == digest and told.metadata == {"note": "x"}
    assert told.size_bytes == sum(path.stat().st_size for path in (tmp_path / "both").rglob("*.safetensors"))
    assert len(load(tmp_path / "both").weights) == told.targets


def two_networks(folder: Path) -> Any:
    layers = [f"{network}.x.lora_{part}.weight" for network in ("unet", "text_encoder") for part in "AB"]
    save_file({name: torch.ones((2, 12) if "_A" in name else (9, 2)) for name in layers}, folder / "two.safetensors")
    return load(folder / "two.safetensors").weights


def read_layers_of(folder: Path) -> Any:
    pair = {"unet.x.lora_A.weight": torch.ones(2, 12), "unet.x.lora_B.weight": torch.ones(9, 2)}
    save_file(pair, folder / "x.safetensors")
    return layers_in(folder / "x.safetensors")


def test_names_that_comfyui_reads_are_called_native(tmp_path: Path) -> None:
    layer = "diffusion_model.double_blocks.0.img_attn.proj"
    pair = {f"{layer}.lora_A.weight": torch.ones(2, 12), f"{layer}.lora_B.weight": torch.ones(9, 2)}
    save_file(pair, tmp_path / "x.safetensors")
    told = info(tmp_path / "x.safetensors")
    assert (told.format, told.needs_base, list(told.kinds)) == ("native", True, ["img_attn.proj"])
