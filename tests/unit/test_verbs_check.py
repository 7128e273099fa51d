"""An adapter against its base: sizes and roundings by closed forms and bitsandbytes, and what is called a problem."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bitsandbytes.functional as bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.bases import write_flux_file, write_tiny_flux
from tests.errors import raises_code
from veneer.adapter.dora import DoraFactors
from veneer.adapter.lora import LoraFactors
from veneer.adapter.protocol import LayerAdapter
from veneer.cli.main import main
from veneer.family.base_weights import BaseWeights
from veneer.verbs.check import AdapterCheck, check_adapter
from veneer.verbs.check_layers import measure, total_losses
from veneer.weights.rounding import ROUNDINGS

FLUX = "transformer.transformer_blocks.0.attn.to_q"
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def noise(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(out: int, inner: int, rank: int = 4, size: float = 0.1, alpha: float = 2.0) -> LoraFactors:
    return LoraFactors(noise(rank, inner, seed=1, size=size), noise(out, rank, seed=2, size=size), alpha)


@pytest.mark.parametrize("shape", [(64, 64), (33, 7), (1, 5), (8, 4, 3, 3)])
def test_nf4_is_that_of_bitsandbytes(shape: tuple[int, ...]) -> None:
    weight = noise(*shape, size=0.03)
    packed, state = bitsandbytes.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(ROUNDINGS["nf4"](weight), bitsandbytes.dequantize_4bit(packed, state).view(shape))
    assert torch.equal(ROUNDINGS["nf4"](torch.zeros(shape)), torch.zeros(shape))


def test_fp8_is_the_nearest_number_of_e4m3() -> None:
    grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    grid = grid[grid.isfinite()]
    weight = noise(4000, size=0.05)
    nearest = (weight[:, None] - grid).abs().min(dim=1).values
    assert torch.equal((ROUNDINGS["fp8"](weight) - weight).abs(), nearest)
    assert ROUNDINGS["fp8"](torch.tensor([1e4, -1e4])).tolist() == [448.0, -448.0]
    scaled = ROUNDINGS["fp8 scaled"](weight)
    assert scaled.abs().max() == pytest.approx(weight.abs().max()) and scaled.unique().numel() <= 256


@pytest.mark.parametrize("name", ROUNDINGS)
def test_a_loss_is_what_the_merged_and_the_plain_weight_differ_by_after_rounding(name: str) -> None:
    weight, adapter = noise(64, 128, size=0.02), factors(64, 128, size=0.03)
    layer = measure("unet.x.to_q", adapter, weight)
    delta = 0.5 * adapter.up.double() @ adapter.down.double()
    change = (ROUNDINGS[name](weight + delta.float()) - ROUNDINGS[name](weight)).double()
    assert layer.losses[name].error == pytest.approx(float((change - delta).norm() / delta.norm()), rel=1e-3)
    lost = float(delta.abs()[change == 0].sum() / delta.abs().sum())
    assert layer.losses[name].unchanged == pytest.approx(lost, rel=1e-3, abs=1e-6)
    assert layer.norm == pytest.approx(float(delta.norm()), rel=1e-5)
    assert layer.ratio == pytest.approx(float(delta.norm() / weight.double().norm()), rel=1e-5)


def test_rows_of_a_large_layer_tell_what_all_of_them_tell() -> None:
    """1.3 million weights, of which a fifth are measured."""
    weight, adapter = noise(1024, 1280, size=0.02), factors(1024, 1280, size=0.05)
    layer = measure("unet.x", adapter, weight)
    delta = 0.5 * adapter.up @ adapter.down
    for name, rounded in ROUNDINGS.items():
        whole = float((rounded(weight + delta) - rounded(weight) - delta).norm() / delta.norm())
        assert layer.losses[name].error == pytest.approx(whole, rel=0.03)


def test_a_dora_s_delta_is_taken_of_the_base() -> None:
    weight, lora = noise(6, 8), factors(6, 8)
    magnitude = weight.norm(dim=1, keepdim=True) * 1.5
    layer = measure("unet.x", DoraFactors(lora, magnitude), weight)
    direction = weight.double() + 0.5 * lora.up.double() @ lora.down.double()
    merged = magnitude.double() * direction / direction.norm(dim=1, keepdim=True)
    assert layer.norm == pytest.approx(float((merged - weight.double()).norm()), rel=1e-5)
    assert (layer.rank, layer.dead_ranks, layer.method) == (None, None, "DoRA")


@pytest.mark.parametrize(("alive", "dead"), [(4, 0), (1, 3), (0, 4)])
def test_ranks_that_carry_nothing_are_counted(alive: int, dead: int) -> None:
    adapter = factors(16, 16)
    up = adapter.up.clone()
    up[:, alive:] *= 1e-4
    if not alive:
        up.zero_()
    layer: LayerAdapter = LoraFactors(adapter.down, up, 4.0)
    measured = measure("unet.x", layer, noise(16, 16))
    assert (measured.rank, measured.dead_ranks) == (4, dead)
    assert bool(measured.losses) == bool(alive)


def test_layers_count_by_their_share_of_the_energy() -> None:
    layers = [measure(f"unet.{n}", factors(8, 8, size=size), noise(8, 8)) for n, size in ((0, 0.01), (1, 1.0))]
    total = total_losses(
        [*layers, measure("unet.2", LoraFactors(torch.ones(1, 8), torch.zeros(8, 1), 1.0), noise(8, 8))]
    )
    for name in ROUNDINGS:
        errors = [layer.losses[name].error * (layer.norm or 0) for layer in layers]
        norms = [layer.norm or 0 for layer in layers]
        assert total[name].error == pytest.approx(
            (errors[0] ** 2 + errors[1] ** 2) ** 0.5 / (norms[0] ** 2 + norms[1] ** 2) ** 0.5
        )


def pair(size: float = 0.1, alpha: float | None = None, name: str = LAYER, width: int = 32) -> dict[str, Tensor]:
    own = factors(width, width, size=size)
    ends = ("lora_A.weight", "lora_B.weight") if name == LAYER else ("lora_down.weight", "lora_up.weight")
    tensors = dict(zip((f"{name}.{end}" for end in ends), (own.down, own.up), strict=True))
    return tensors if alpha is None else tensors | {f"{name}.alpha": torch.tensor(alpha)}


def checked(
    folder: Path, tensors: dict[str, Tensor], base: Path, config: dict[str, object] | None = None
) -> AdapterCheck:
    metadata = {"lora_adapter_metadata": json.dumps(config)} if config else None
    save_file(tensors, folder / "x.safetensors", metadata)
    return check_adapter(folder / "x.safetensors", base=str(base))


@pytest.fixture(scope="module")
def width(tiny_base: Path) -> int:
    return int(load_file(tiny_base / "unet" / "diffusion_pytorch_model.safetensors")[f"{LAYER[5:]}.weight"].shape[0])


def test_a_sound_adapter_is_fine(tiny_base: Path, tmp_path: Path, width: int) -> None:
    found = checked(tmp_path, pair(alpha=2.0, name=KOHYA, width=width), tiny_base)
    assert found.problems == () and (found.tensors, found.precision) == (3, "float32")
    assert [layer.name for layer in found.layers] == [LAYER]
    assert found.strengths == {0.5: 1} and found.strength_in == {"alpha": 1}
    own, total = found.coverage["attn1.to_q"]
    assert own == 1 and total > 1 and found.coverage["attn1.to_k"][0] == 0
    assert "q_proj" not in " ".join(found.coverage), "the text encoder is not adapted, so its layers are not counted"
    weight = load_file(tiny_base / "unet" / "diffusion_pytorch_model.safetensors")[f"{LAYER[5:]}.weight"]
    delta = 0.5 * factors(width, width).up @ factors(width, width).down
    assert found.ratios == {LAYER: pytest.approx(float(delta.norm() / weight.norm()), rel=1e-4)}


def test_a_strength_that_half_the_readers_miss_is_a_problem(tiny_base: Path, tmp_path: Path, width: int) -> None:
    config = {"unet.r": 4, "unet.lora_alpha": 2, "unet.target_modules": [LAYER[5:]]}
    (problem,) = checked(tmp_path, pair(width=width), tiny_base, config).problems
    assert "the strength 0.5 of 1 layers is told by lora_adapter_metadata alone" in problem
    folded = {**config, "unet.lora_alpha": 4}
    assert checked(tmp_path, pair(width=width), tiny_base, folded).problems == ()


def test_what_peft_s_own_config_tells_is_told_where_its_reader_looks(
    tiny_base: Path, tmp_path: Path, width: int
) -> None:
    tensors = {f"base_model.model.{name[5:]}": tensor for name, tensor in pair(width=width).items()}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2, "peft_type": "LORA"}))
    found = checked(tmp_path, tensors, tiny_base)
    assert found.problems == () and found.strengths == {0.5: 1} and found.strength_in == {"adapter_config.json": 1}


def test_layers_without_an_alpha_beside_others_are_a_problem(tiny_base: Path, tmp_path: Path, width: int) -> None:
    two = pair(alpha=2.0, name=KOHYA, width=width) | pair(name=KOHYA.replace("to_q", "to_v"), width=width)
    (problem,) = checked(tmp_path, two, tiny_base).problems
    assert problem.startswith("1 layers have no alpha, which means 1, beside 1 that have one of another strength")


def test_what_changes_nothing_and_what_changes_too_much_are_problems(
    tiny_base: Path, tmp_path: Path, width: int
) -> None:
    zero = {name: tensor * ("_A" in name) for name, tensor in pair(width=width).items()}
    found = checked(tmp_path, zero, tiny_base)
    assert found.problems == ("it changes nothing: delta W of every layer is zero",) and found.losses == {}
    (problem,) = checked(tmp_path, pair(size=5.0, width=width), tiny_base).problems
    assert problem.startswith("delta W is larger than the base's own weight in 1 layers, in " + LAYER)


def test_a_base_that_would_swallow_it_is_a_problem(tiny_base: Path, tmp_path: Path, width: int) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "bf16")
    for path in base.glob("*/*.safetensors"):
        save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    found = checked(tmp_path, pair(size=0.01, width=width), base)
    (problem,) = found.problems
    assert found.precision == "bfloat16" and problem.startswith(
        "merged into this base, which is held in bf16, it is off"
    )
    assert found.losses["bf16"].error > 0.5 and any("nf4" in note for note in found.notes)


def test_a_fused_layer_and_a_single_file_are_what_the_folder_is(tmp_path: Path) -> None:
    """FLUX: kohya's qkv is three layers of diffusers, and a base may be a file of its authors' names, in 8 bits."""
    folder = write_tiny_flux(tmp_path / "flux")
    one = write_flux_file(folder, tmp_path / "flux.safetensors")
    eight = write_flux_file(folder, tmp_path / "eight.safetensors", dtype=torch.float8_e4m3fn)
    name, size = "lora_unet_double_blocks_0_img_attn_qkv", BaseWeights(folder).shape(FLUX)[1]
    own = factors(3 * size, size, alpha=2.0)
    tensors = {
        f"{name}.lora_down.weight": own.down,
        f"{name}.lora_up.weight": own.up,
        f"{name}.alpha": torch.tensor(2.0),
    }
    whole, single, small = (checked(tmp_path, tensors, base) for base in (folder, one, eight))
    assert whole.tensors == 3 and len(whole.layers) == 3 and whole.strengths == {0.5: 1} and whole.problems == ()
    assert whole.ratios == pytest.approx(single.ratios) and small.precision == "float8_e4m3fn"
    delta = (0.5 * own.up @ own.down)[:size]
    weight = BaseWeights(folder).read(FLUX)
    assert whole.ratios[FLUX] == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-4)


def test_a_norm_and_a_full_difference_are_measured(tiny_base: Path, tmp_path: Path) -> None:
    path = "down_blocks.0.attentions.0.norm"
    weight = load_file(tiny_base / "unet" / "diffusion_pytorch_model.safetensors")[f"{path}.weight"]
    difference = noise(*weight.shape, size=0.1)
    found = checked(tmp_path, {f"lora_unet_{path.replace('.', '_')}.w_norm": difference}, tiny_base)
    assert found.ratios == {f"unet.{path}": pytest.approx(float(difference.norm() / weight.norm()), rel=1e-4)}
    assert set(found.losses) == set(ROUNDINGS) and found.layers[0].rank is None


def test_the_command_tells_the_verdict_by_its_exit_code(
    tiny_base: Path, tmp_path: Path, width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.safetensors"
    save_file(pair(alpha=2.0, name=KOHYA, width=width), path)
    command = ["adapter", "check", str(path), "--base", str(tiny_base)]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "verdict" in text and text.rstrip().endswith("fine") and "merged in nf4" in text
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["verdict"] == "fine" and set(data["losses"]) == set(ROUNDINGS) and data["layers"][0]["name"] == LAYER
    save_file(pair(size=5.0, width=width), path)
    assert main(command) == 1
    assert "problem" in capsys.readouterr().out
    save_file(pair(width=width + 1), path)
    assert main(command) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_adapter_of_another_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    with raises_code("weights.unknown_layer"):
        checked(tmp_path, pair(name="lora_unet_double_blocks_0_img_attn_qkv"), tiny_base)
