"""Adapters merged into a base's files: what is written is the base plus the adapters, and nothing else changes."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.bases import write_flux_file, write_single_file, write_tiny_flux, write_tiny_sdxl
from tests.errors import raises_code
from veneer.adapter.dora import DoraFactors
from veneer.adapter.lora import LoraFactors
from veneer.adapter.merge import merge
from veneer.adapter.protocol import LayerAdapter
from veneer.engine.peak_memory import release_freed_memory
from veneer.family.base_weights import BaseWeights
from veneer.family.registry import load_family
from veneer.verbs import merged_files
from veneer.verbs.merge import MergeResult, merge_adapters
from veneer.weights import tensors_writer
from veneer.weights.file import AdapterFile, info, load, save
from veneer.weights.tensors_writer import TensorsWriter

UNET = ("attn1.to_q", "attn2.to_v", "to_out.0", "ff.net.2", "conv1", "downsamplers.0.conv")
TEXT = ("q_proj", "v_proj", "fc1")
FLUX = ("to_q", "to_v", "add_k_proj", "proj_mlp", "norm_out.linear", "single_transformer_blocks.1.proj_out")


def adapter(base: BaseWeights, seed: int = 1, size: float = 0.1) -> dict[str, LayerAdapter]:
    """A LoRA of rank 2 on some layers of each network."""
    numbers = torch.Generator().manual_seed(seed)
    found: dict[str, LayerAdapter] = {}
    for layer in base.layers():
        if layer.endswith(FLUX if layer.startswith("transformer") else UNET if layer.startswith("unet") else TEXT):
            out, *rest = base.shape(layer)
            down = torch.randn(2, *rest, generator=numbers)
            up = torch.randn(out, 2, *(1 for _ in rest[1:]), generator=numbers)
            found[layer] = LoraFactors(down, size * up, 3.0)
    return found


def saved(weights: Mapping[str, LayerAdapter], path: Path) -> tuple[Path, float]:
    save(AdapterFile(weights, {"trigger": "sks"}), path)
    return path, 1.0


def expected(base: BaseWeights, name: str, *parts: tuple[Mapping[str, LayerAdapter], float]) -> Tensor:
    """W + sum of w_i delta W_i, in float32, by the adapters' own names."""
    layer, _, part = name.rpartition(".")
    weight = base.stored[name].read().float()
    deltas = [w * each[layer].delta_weight(weight) for each, w in parts if layer in each and part == "weight"]
    return sum(deltas, weight)


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_sdxl(tmp_path_factory.mktemp("xl") / "base")
    write_single_file(folder, folder.parent / "xl.safetensors")
    return folder


@pytest.fixture(scope="module")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux_file(
        write_tiny_flux(tmp_path_factory.mktemp("flux") / "base"), tmp_path_factory.mktemp("file") / "flux.safetensors"
    )


def check_each_weight(result: MergeResult, base: BaseWeights, *parts: tuple[Mapping[str, LayerAdapter], float]) -> None:
    found = BaseWeights(result.path)
    assert found.stored.keys() == base.stored.keys()
    for name, stored in base.stored.items():
        layer, _, part = name.rpartition(".")
        assert found.stored[name].dtype == stored.dtype and found.stored[name].shape == stored.shape
        if part == "weight" and any(layer in each for each, _ in parts):
            torch.testing.assert_close(found.stored[name].read(), expected(base, name, *parts).to(stored.dtype))
        else:
            assert torch.equal(found.stored[name].read(), stored.read()), name


def test_a_folder_keeps_its_shards_and_all_else(tiny_sdxl: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, torch_dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    (tmp_path / "base" / "README.md").write_text("a base")
    base = BaseWeights(tmp_path / "base")
    one, other = adapter(base), {name: each for name, each in adapter(base, 2).items() if name.startswith("unet.")}
    sources = [saved(one, tmp_path / "a.safetensors"), (saved(other, tmp_path / "b.safetensors")[0], -0.5)]
    result = merge_adapters(sources, tmp_path / "out", base=str(tmp_path / "base"))
    check_each_weight(result, base, (one, 1.0), (other, -0.5))
    files = sorted(path.relative_to(tmp_path / "base") for path in (tmp_path / "base").rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(result.path) for path in result.path.rglob("*") if path.is_file())
    changed = {file.path.relative_to(base.place) for file in base.files}
    assert len(changed) > 5 and not result.left_out
    for path in files:
        same = filecmp.cmp(tmp_path / "base" / path, result.path / path, shallow=False)
        assert same != (path in changed), path
    assert set(result.dtypes) == {"float16"} and 0 < result.lost < 0.05 and result.worst[1] >= result.lost


def test_a_folder_s_whole_network_does_what_the_adapter_beside_the_base_does(tiny_base: Path, tmp_path: Path) -> None:
    base = BaseWeights(tiny_base)
    weights = adapter(base)
    result = merge_adapters([saved(weights, tmp_path / "a.safetensors")], tmp_path / "out", base=str(tiny_base))
    before, after = load_family(str(tiny_base)), load_family(str(result.path))
    noisy, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32)

    def outputs(family: Any) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            states = family.networks["text_encoder"](torch.arange(12).view(2, 6)).last_hidden_state
            return family.networks["unet"](noisy, torch.tensor([3, 700]), text).sample, states

    plain, merged = outputs(before), outputs(after)
    merge(before.networks, [(weights, 1.0)])
    for one, other, without in zip(merged, outputs(before), plain, strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.allclose(one, without, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_single_file_keeps_its_names_and_all_other_bytes(dtype: torch.dtype, tiny_sdxl: Path, tmp_path: Path) -> None:
    """Text encoders too: the second one's queries, keys and values lie in one matrix."""
    file = tmp_path / "xl.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(tiny_sdxl.parent / "xl.safetensors").items()}
    save_file({**tensors, "v_pred": torch.zeros(0)}, file, {"modelspec.title": "XL", "modelspec.hash_sha256": "0x1"})
    base = BaseWeights(file)
    weights = adapter(base)
    source = saved(weights, tmp_path / "style.safetensors")
    result = merge_adapters([(source[0], 0.5)], tmp_path / "out.safetensors", base=str(file))
    check_each_weight(result, base, (weights, 0.5))
    changed = {base.stored[f"{layer}.weight"].place.tensor for layer in weights}
    assert any(name.endswith("in_proj_weight") for name in changed)
    with safe_open(file, framework="pt") as old, safe_open(result.path, framework="pt") as new:
        assert list(old.keys()) == list(new.keys())
        for name in old.keys():  # noqa: SIM118
            assert torch.equal(old.get_tensor(name), new.get_tensor(name)) == (name not in changed), name
        metadata = new.metadata()
    assert metadata["modelspec.title"] == "XL" and "modelspec.hash_sha256" not in metadata
    assert metadata["modelspec.merged_from"] == "xl, style"
    (entry,) = json.loads(metadata["veneer.history"])
    assert entry["sources"][1] == {"name": "style.safetensors", "sha256": info(source[0]).sha256}
    assert entry["operation"] == "merge" and len(entry["sources"][0]["sha256"]) == 64 and entry["strengths"] == "0.5"
    assert (result.lost == 0) == (dtype == torch.float32)


def test_a_single_file_of_sdxl_is_loaded_by_diffusers_and_paints_as_the_adapter_does(
    tiny_sdxl: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionXLPipeline

    file = tiny_sdxl.parent / "xl.safetensors"
    weights = adapter(BaseWeights(file))
    result = merge_adapters([saved(weights, tmp_path / "a.safetensors")], tmp_path / "out.safetensors", base=str(file))
    pipeline = StableDiffusionXLPipeline.from_single_file(str(result.path), config=str(tiny_sdxl))
    family = load_family(str(tiny_sdxl))
    merge(family.networks, [(load(tmp_path / "a.safetensors", family.networks).weights, 1.0)])
    for name, network in family.networks.items():
        own = dict(getattr(pipeline, name).named_parameters())
        for path, parameter in network.named_parameters():
            torch.testing.assert_close(own[path], parameter)


def test_flux_s_fused_layers(tiny_flux: Path, tmp_path: Path) -> None:
    base = BaseWeights(tiny_flux)
    weights = adapter(base)
    assert any(layer.endswith("add_k_proj") for layer in weights)
    source = saved(weights, tmp_path / "a.safetensors")
    result = merge_adapters([source], tmp_path / "out.safetensors", base=str(tiny_flux))
    check_each_weight(result, base, (weights, 1.0))
    old, new = load_file(tiny_flux), load_file(result.path)
    rows = old["double_blocks.0.txt_attn.qkv.weight"] != new["double_blocks.0.txt_attn.qkv.weight"]
    assert rows.any(1).tolist() == [False] * 32 + [True] * 32 + [False] * 32


def test_kohya_s_file_of_fused_layers(tiny_flux: Path, tmp_path: Path) -> None:
    down, up = torch.randn(2, 32), torch.randn(96, 2)
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "k.safetensors")
    merge_adapters([(tmp_path / "k.safetensors", 1.0)], tmp_path / "out.safetensors", base=str(tiny_flux))
    name = "double_blocks.0.img_attn.qkv.weight"
    old, new = load_file(tiny_flux)[name], load_file(tmp_path / "out.safetensors")[name]
    torch.testing.assert_close(new, old + 0.5 * up @ down)


def test_dora_is_merged_by_its_own_formula(tiny_flux: Path, tmp_path: Path) -> None:
    base = BaseWeights(tiny_flux)
    layer = "transformer.single_transformer_blocks.0.attn.to_k"
    lora = LoraFactors(torch.randn(2, 32), torch.randn(32, 2), 1.0)
    weights = {layer: DoraFactors(lora, torch.rand(32, 1) + 0.5)}
    source = saved(weights, tmp_path / "a.safetensors")
    result = merge_adapters([source], tmp_path / "out.safetensors", base=str(tiny_flux))
    check_each_weight(result, base, (weights, 1.0))


METHODS = {
    "loha.LohaModule": ("down_blocks.0.resnets.0.conv1", {"lora_dim": 4, "alpha": 2.0}),
    "lokr.LokrModule": ("mid_block.attentions.0.proj_in", {"lora_dim": 4, "alpha": 2.0, "factor": 4}),
    "diag_oft.DiagOFTModule": ("mid_block.resnets.0.conv2", {"lora_dim": 4, "alpha": 2.0}),
    "glora.GLoRAModule": ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", {"lora_dim": 4, "alpha": 2.0}),
    "ia3.IA3Module": ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k", {"lora_dim": 4, "alpha": 1.0}),
    "full.FullModule": ("mid_block.resnets.0.time_emb_proj", {"lora_dim": 4, "alpha": 1.0}),
    "norms.NormModule": ("mid_block.attentions.0.norm", {}),
}


def test_every_method_is_merged_as_it_is_in_memory(tiny_base: Path, tmp_path: Path) -> None:
    """LyCORIS' own modules on layers of the base, of which some change biases and norms, all in one file."""
    from lycoris import modules

    family = load_family(str(tiny_base))
    tensors: dict[str, Tensor] = {}
    torch.manual_seed(0)
    for name, (path, options) in METHODS.items():
        kind = getattr(getattr(modules, name.partition(".")[0]), name.partition(".")[2])
        module = kind("x", family.networks["unet"].get_submodule(path), 1.0, **options)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        is_full = name == "full.FullModule"  # which holds the difference until it is put in place of the layer
        state = {"diff": module.weight, "diff_b": module.bias} if is_full else module.custom_state_dict()
        state = state or module.state_dict()
        key = f"lora_unet_{path.replace('.', '_')}"
        tensors |= {f"{key}.{part}": tensor.detach().clone().contiguous() for part, tensor in state.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    family = load_family(str(tiny_base))
    before = {
        f"{name}.{path}": tensor.clone()
        for name, network in family.networks.items()
        for path, tensor in network.state_dict().items()
    }
    weights = load(tmp_path / "a.safetensors", family.networks).weights
    assert len({each.method.name for each in weights.values()}) == len(METHODS)
    merge(family.networks, [(weights, 0.7)])
    result = merge_adapters([(tmp_path / "a.safetensors", 0.7)], tmp_path / "out", base=str(tiny_base))
    after = load_family(str(result.path))
    changed = set()
    for prefix, network in family.networks.items():
        for path, tensor in network.state_dict().items():
            found = after.networks[prefix].state_dict()[path]
            torch.testing.assert_close(found, tensor, rtol=1e-5, atol=1e-6)
            changed |= set() if torch.equal(found, before[f"{prefix}.{path}"]) else {f"{prefix}.{path}"}
    assert {f"{path}.weight" for path in weights} <= changed
    assert {"unet.mid_block.attentions.0.norm.bias", "unet.mid_block.resnets.0.time_emb_proj.bias"} <= changed
    assert result.difference.maximum < 1e-4


DTYPES = {"float32": 24, "float16": 11, "bfloat16": 8, "float8_e4m3fn": 4}


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_measured(dtype: str, tiny_flux: Path, tmp_path: Path) -> None:
    """Against the same figure in numpy's float64; a shorter mantissa loses more."""
    base = BaseWeights(tiny_flux)
    weights = adapter(base, size=0.003)
    source = saved(weights, tmp_path / "a.safetensors")
    result = merge_adapters([source], tmp_path / "out.safetensors", base=str(tiny_flux), dtype=dtype)
    found = BaseWeights(result.path)
    errors, changes = {}, {}
    for layer, each in weights.items():
        weight = base.read(layer).double()
        total = (weight.float() + each.delta_weight(weight)).double()
        errors[layer] = float((found.read(layer).double() - total).square().sum())
        changes[layer] = float(each.delta_weight(weight).double().square().sum())
        assert result.rounding[layer].ratio == pytest.approx(
            (errors[layer] / changes[layer]) ** 0.5, rel=1e-3, abs=1e-4
        )
    assert result.lost == pytest.approx((sum(errors.values()) / sum(changes.values())) ** 0.5, rel=1e-3, abs=1e-4)
    assert result.worst[0] == max(weights, key=lambda layer: errors[layer] / changes[layer]) or dtype == "float32"
    assert result.dtypes == (dtype,) and bool(result.warnings) == (result.lost > 0.1)
    assert result.lost < 2 ** -DTYPES[dtype] * 200 and (result.lost == 0) == (dtype == "float32")
    narrow = {found.stored[name].dtype for name in found.stored if name.rpartition(".")[0] in set(base.layers())}
    assert getattr(torch, dtype) in narrow


def test_a_folder_in_another_dtype_says_so(tiny_sdxl: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    StableDiffusionXLPipeline.from_pretrained(tiny_sdxl).save_pretrained(tmp_path / "base", max_shard_size="100KB")
    base = BaseWeights(tmp_path / "base")
    weights = {name: each for name, each in adapter(base).items() if name.startswith("unet.")}
    source = saved(weights, tmp_path / "a.safetensors")
    result = merge_adapters([source], tmp_path / "out", base=str(tmp_path / "base"), dtype="float16")
    assert {stored.dtype for stored in BaseWeights(result.path).stored.values()} == {torch.float16}
    index = json.loads((result.path / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = [load_file(path) for path in (result.path / "unet").glob("*.safetensors")]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensors in files for tensor in tensors.values())
    config = json.loads((result.path / "text_encoder" / "config.json").read_text())
    assert {config[key] for key in ("dtype", "torch_dtype") if key in config} == {"float16"}
    pipeline = StableDiffusionXLPipeline.from_pretrained(result.path, torch_dtype=torch.float16)
    name = next(iter(weights)).removeprefix("unet.")
    assert torch.equal(pipeline.unet.get_submodule(name).weight, BaseWeights(result.path).read(f"unet.{name}"))
    autoencoder = [load_file(path) for path in (result.path / "vae").glob("*.safetensors")]
    assert {tensor.dtype for tensors in autoencoder for tensor in tensors.values()} == {torch.float32}


def test_a_folder_in_eight_bits_is_loaded(tiny_base: Path, tmp_path: Path) -> None:
    base = BaseWeights(tiny_base)
    weights = adapter(base)
    source = saved(weights, tmp_path / "a.safetensors")
    result = merge_adapters([source], tmp_path / "out", base=str(tiny_base), dtype="float8_e4m3fn")
    family, found = load_family(str(result.path)), BaseWeights(result.path)
    for layer in weights:
        network, _, path = layer.partition(".")
        assert found.dtype(layer) == torch.float8_e4m3fn
        assert torch.equal(family.networks[network].get_submodule(path).weight, found.read(layer).float())


def test_averages_of_a_training_are_warned_of(tiny_sdxl: Path, tmp_path: Path) -> None:
    file = tmp_path / "xl.safetensors"
    save_file({**load_file(tiny_sdxl.parent / "xl.safetensors"), "model_ema.diffusion_modelx": torch.ones(2)}, file)
    source = saved(adapter(BaseWeights(file)), tmp_path / "a.safetensors")
    (warning,) = merge_adapters([source], tmp_path / "out.safetensors", base=str(file)).warnings
    assert "model_ema.* weights are as in the base" in warning


def scaled(path: Path, flux: Path, scale: float) -> Path:
    """FLUX in 8 bits, each matrix with a scale, as ComfyUI writes it."""
    tensors: dict[str, Tensor] = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in load_file(flux).items():
        if tensor.ndim == 2:
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[name.replace(".weight", ".scale_weight")] = torch.tensor(scale)
        else:
            tensors[name] = tensor
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("scale", [0.01, 1e-3])
def test_scaled_numbers_of_eight_bits_keep_their_scale_unless_they_outgrow_it(
    scale: float, tiny_flux: Path, tmp_path: Path
) -> None:
    file = scaled(tmp_path / "scaled.safetensors", tiny_flux, scale)
    base = BaseWeights(file)
    weights = adapter(base, size=0.2)
    source = saved(weights, tmp_path / "a.safetensors")
    result = merge_adapters([source], tmp_path / "out.safetensors", base=str(file))
    found, old, new = BaseWeights(result.path), load_file(file), load_file(result.path)
    assert old.keys() == new.keys() and old["scaled_fp8"].dtype == new["scaled_fp8"].dtype
    grown = [name for name in old if name.endswith(".scale_weight") and not torch.equal(old[name], new[name])]
    assert bool(grown) == (scale == 1e-3) and all(new[name] > old[name] for name in grown)
    for layer, each in weights.items():
        total = base.read(layer) + each.delta_weight(base.read(layer))
        torch.testing.assert_close(found.read(layer), total, rtol=2**-4, atol=2 * scale)
    wide = merge_adapters([source], tmp_path / "wide.safetensors", base=str(file), dtype="float16")
    names = load_file(wide.path).keys()
    assert not any("scale" in name and "norm" not in name for name in names)
    layer = next(iter(weights))
    total = base.read(layer) + weights[layer].delta_weight(base.read(layer))
    torch.testing.assert_close(BaseWeights(wide.path).read(layer), total.half())


def test_the_difference_on_random_inputs_is_small_and_shows_a_wrong_merge(
    tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = adapter(BaseWeights(tiny_flux))
    source = saved(weights, tmp_path / "a.safetensors")
    right = merge_adapters([source], tmp_path / "right.safetensors", base=str(tiny_flux))
    assert right.difference.layers == len(weights) and 0 <= right.difference.mean <= right.difference.maximum < 1e-5
    monkeypatch.setattr("veneer.verbs.merged_tensor.sum_weight", lambda weight, parts: weight)
    wrong = merge_adapters([source], tmp_path / "wrong.safetensors", base=str(tiny_flux))
    assert wrong.difference.of_change == pytest.approx(1.0, abs=1e-3) and wrong.difference.maximum > 0.01


def test_weights_of_other_variants_and_whole_checkpoints_are_left_out(tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin", "model.onnx"):
        (base / "unet" / name).write_bytes(b"x" * 100)
    (base / "v1-5-pruned.safetensors").write_bytes(b"x" * 100)
    (base / ".cache").mkdir()
    (base / ".cache" / "x.lock").touch()
    weights = {name: each for name, each in adapter(BaseWeights(base)).items() if name.startswith("unet.")}
    source = saved(weights, tmp_path / "a.safetensors")
    result = merge_adapters([source], tmp_path / "out", base=str(base))
    assert sorted(map(str, result.left_out)) == [
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/model.onnx",
        "v1-5-pruned.safetensors",
    ]
    assert not (result.path / ".cache").exists() and load_family(str(result.path)).name == "sd"


def _other_architecture(weights: dict[str, LayerAdapter]) -> dict[str, LayerAdapter]:
    return {**weights, "transformer.x_embedder": LoraFactors(torch.ones(1, 99), torch.ones(32, 1), 1.0)}


def _unknown_layer(weights: dict[str, LayerAdapter]) -> dict[str, LayerAdapter]:
    return {**weights, "transformer.nowhere": LoraFactors(torch.ones(1, 9), torch.ones(9, 1), 1.0)}


def _too_large(weights: dict[str, LayerAdapter]) -> dict[str, LayerAdapter]:
    return {**weights, "transformer.x_embedder": LoraFactors(torch.ones(1, 16), torch.full((32, 1), 1e30), 1.0)}


@pytest.mark.parametrize(
    "spoil, code",
    [
        (_other_architecture, "adapter.other_architecture"),
        (_unknown_layer, "weights.unknown_layer"),
        (_too_large, "adapter.merge_not_finite"),
    ],
)
def test_what_cannot_be_merged_leaves_nothing(
    spoil: Callable[[dict[str, LayerAdapter]], dict[str, LayerAdapter]], code: str, tiny_flux: Path, tmp_path: Path
) -> None:
    source = saved(spoil(adapter(BaseWeights(tiny_flux))), tmp_path / "a.safetensors")
    with raises_code(code):
        merge_adapters([(source[0], 1e30)], tmp_path / "new" / "out.safetensors", base=str(tiny_flux))
    assert not list(tmp_path.rglob("*out*"))


def test_a_sum_that_half_precision_does_not_hold_is_refused(tiny_flux: Path, tmp_path: Path) -> None:
    weights = {"transformer.x_embedder": LoraFactors(torch.ones(1, 16), torch.full((32, 1), 1e5), 1.0)}
    source = saved(weights, tmp_path / "a.safetensors")
    with raises_code("adapter.merge_overflow", "too large for float16"):
        merge_adapters([source], tmp_path / "out.safetensors", base=str(tiny_flux), dtype="float16")


@pytest.mark.parametrize("name, code", [("out", "output.other_kind"), ("a.safetensors", "output.exists")])
def test_the_new_place_must_be_free_and_of_the_base_s_kind(
    name: str, code: str, tiny_flux: Path, tmp_path: Path
) -> None:
    source = saved(adapter(BaseWeights(tiny_flux)), tmp_path / "a.safetensors")
    with raises_code(code):
        merge_adapters([source], tmp_path / name, base=str(tiny_flux))


def test_a_folder_s_name_for_a_folder(tiny_base: Path, tmp_path: Path) -> None:
    source = saved(adapter(BaseWeights(tiny_base)), tmp_path / "a.safetensors")
    with raises_code("output.other_kind"):
        merge_adapters([source], tmp_path / "out.safetensors", base=str(tiny_base))


def test_no_adapter_is_refused(tmp_path: Path) -> None:
    with raises_code("adapter.empty_merge"):
        merge_adapters([], tmp_path / "out")


def test_no_room_is_told_before_a_byte_is_written(
    tiny_base: Path, tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 2**20

    monkeypatch.setattr(tensors_writer.shutil, "disk_usage", lambda folder: Usage)
    monkeypatch.setattr(TensorsWriter, "__init__", None)
    for base, name in ((tiny_base, "out"), (tiny_flux, "out.safetensors")):
        source = saved(adapter(BaseWeights(base)), tmp_path / f"{base.stem}.a.safetensors")
        with raises_code("output.no_space"):
            merge_adapters([source], tmp_path / name, base=str(base))
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_in_the_middle_leaves_nothing(
    error: BaseException, tiny_base: Path, tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {
        name: saved(adapter(BaseWeights(base)), tmp_path / f"{name}-adapter.safetensors")
        for name, base in (("folder", tiny_base), ("file.safetensors", tiny_flux))
    }
    write, count = TensorsWriter.write, []

    def fail(self: TensorsWriter, name: str, tensor: Tensor) -> None:
        count.append(name)
        if len(count) % 3 == 0:
            raise error
        write(self, name, tensor)

    monkeypatch.setattr(TensorsWriter, "write", fail)
    for name, base in (("folder", tiny_base), ("file.safetensors", tiny_flux)):
        if isinstance(error, OSError):
            with raises_code("files.unwritable", "No space left on device"):
                merge_adapters([sources[name]], tmp_path / name, base=str(base))
        else:
            with pytest.raises(KeyboardInterrupt):
                merge_adapters([sources[name]], tmp_path / name, base=str(base))
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(each[0].name for each in sources.values())


def test_a_file_that_cannot_be_copied_is_one_line(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*paths: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = saved(adapter(BaseWeights(tiny_base)), tmp_path / "a.safetensors")
    monkeypatch.setattr(merged_files.shutil, "copyfile", fail)
    with raises_code("output.not_writable", "No space left on device"):
        merge_adapters([source], tmp_path / "out", base=str(tiny_base))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_progress_ends_at_the_size_of_what_is_written(tiny_base: Path, tiny_flux: Path, tmp_path: Path) -> None:
    for base, name in ((tiny_base, "out"), (tiny_flux, "out.safetensors")):
        told: list[tuple[int, int]] = []
        source = saved(adapter(BaseWeights(base)), tmp_path / f"{base.stem}.a.safetensors")
        out = merge_adapters(
            [source], tmp_path / name, base=str(base), progress=lambda *each, told=told: told.append(each)
        ).path
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) or out.stat().st_size
        assert told[-1] == (size, size) and told == sorted(told) and len(told) > 10


def write_large(folder: Path, layers: int) -> tuple[Path, tuple[Path, float]]:
    """A base of matrices of 1.5 MB, and an adapter of all of them."""
    folder.mkdir()
    names = [f"single_transformer_blocks.{number}.proj_out" for number in range(layers)]
    tensors = {f"{name}.weight": torch.full((256, 3072), 0.5).half() for name in names}
    mark = {"time_text_embed.timestep_embedder.linear_1.weight": torch.zeros(4, 4)}
    save_file({**mark, **tensors}, folder / "base.safetensors")
    factors = {f"transformer.{name}": LoraFactors(torch.randn(4, 3072), torch.randn(256, 4), 1.0) for name in names}
    return folder / "base.safetensors", saved(factors, folder / "a.safetensors")


@contextmanager
def most_own_memory() -> Iterator[list[int]]:
    """Yield a list of how many bytes the process has that are no file's pages, as a thread sees them."""
    seen, is_over = [], threading.Event()

    def own() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))

    def watch() -> None:
        while not is_over.wait(0.001):
            seen.append(own())

    seen.append(own())
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def growth_of_a_merge(folder: Path) -> int:
    """Return by how many bytes a process grows that merges into a base of 107 MB; a small one warms it up.

    The least of three times: how much of a heap lies idle between two threads is chance, what a merge holds is not.
    """
    tensors_writer.os.fsync = lambda file: None  # type: ignore[attr-defined]  # which takes as long as all the rest
    small, large = (write_large(folder / name, layers) for name, layers in (("small", 2), ("large", 68)))
    grown = []
    for number, (file, source) in enumerate((small, large, large, large)):
        release_freed_memory()
        with most_own_memory() as seen:
            merge_adapters([source], folder / f"{number}.safetensors", base=str(file))
        assert file is small[0] or len(seen) > 20
        grown.append(max(seen) - seen[0])
    assert large[0].stat().st_size > 1e8
    return min(grown[1:])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells own pages from a file's")
def test_memory_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    """It takes a few times a tensor's size, not a share of the file; in a process of its own, whose heap is its own."""
    code = "import pathlib, tests.unit.test_verbs_merge as test; print(test.growth_of_a_merge(pathlib.Path()))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.split()[-1])
    assert grown < 6e7, f"{grown / 1e6:.0f} MB"
