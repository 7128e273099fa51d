"""Adapters extracted from fine-tuned bases: a known LoRA comes back, and what is lost is told."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.bases import write_flux_file, write_tiny_flux
from tests.errors import raises_code
from veneer.adapter.lora import LoraFactors, delta_weight
from veneer.adapter.resize import Criterion
from veneer.cli.main import main
from veneer.family.base_weights import BaseWeights
from veneer.family.fingerprint import fingerprint
from veneer.verbs.extract import ExtractOptions, ExtractResult, extract_adapter
from veneer.verbs.merge import merge_adapters
from veneer.weights.file import AdapterFile, load, save

UNET = "unet/diffusion_pytorch_model.safetensors"
NORM, BIAS = "mid_block.resnets.0.norm1.weight", "mid_block.resnets.0.conv1.bias"
TABLE = "embeddings.token_embedding.weight"


def known(base: BaseWeights, rank: int = 3) -> dict[str, LoraFactors]:
    """A LoRA of a rank on all layers that have it."""
    numbers = torch.Generator().manual_seed(1)
    found = {}
    for layer in base.layers():
        out, *rest = base.shape(layer)
        if min(out, math.prod(rest)) >= rank:
            down = torch.randn(rank, *rest, generator=numbers)
            up = 0.1 * torch.randn(out, rank, *(1 for _ in rest[1:]), generator=numbers)
            found[layer] = LoraFactors(down, up, 2.0)
    return found


def tune(base: Path, folder: Path, weights: Mapping[str, LoraFactors], dtype: str = "float32") -> Path:
    folder.mkdir(exist_ok=True)
    save(AdapterFile(weights), folder / "known.safetensors")
    out = folder / ("tuned" if base.is_dir() else "tuned.safetensors")
    return merge_adapters([(folder / "known.safetensors", 1.0)], out, base=str(base), dtype=dtype).path


def change(folder: Path, file: str, **changes: Tensor) -> None:
    """Add to weights of a folder's file."""
    tensors = load_file(folder / file)
    save_file({**tensors, **{name: tensors[name] + delta for name, delta in changes.items()}}, folder / file)


@pytest.fixture(scope="module")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux")
    return write_flux_file(write_tiny_flux(folder / "base"), folder / "flux.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_known_lora_comes_back(kind: str, tiny_base: Path, tiny_flux: Path, tmp_path: Path) -> None:
    base = tiny_base if kind == "folder" else tiny_flux
    weights = known(BaseWeights(base))
    tuned = tune(base, tmp_path / "a", weights)
    options = ExtractOptions(rank=3, text_encoders=True)
    result = extract_adapter(str(tuned), str(base), tmp_path / "out.safetensors", options)
    found = load(result.path).weights
    assert found.keys() == weights.keys() and not result.lost
    for layer, each in weights.items():
        assert found[layer].hyperparameters["rank"] == 3
        delta, ours = delta_weight(each), found[layer].delta_weight(torch.empty(0))
        torch.testing.assert_close(ours, delta, rtol=1e-3, atol=1e-5)
        values = [torch.linalg.svdvals(one.flatten(1).double())[:3] for one in (ours, delta)]
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-6)
    assert result.retained > 0.99999 and result.kinds[-1].layers == len(weights)
    again = merge_adapters([(result.path, 1.0)], tmp_path / f"b{tuned.suffix}", base=str(base)).path
    for name, stored in BaseWeights(tuned).stored.items():
        torch.testing.assert_close(BaseWeights(again).stored[name].read(), stored.read(), rtol=1e-4, atol=1e-5)


def test_half_precision_comes_back_to_its_rounding(tiny_base: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None, torch_dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "half")
    weights = {name: each for name, each in known(BaseWeights(tiny_base)).items() if name.startswith("unet.")}
    tuned = tune(tmp_path / "half", tmp_path / "a", weights, "float16")
    options = ExtractOptions(criterion=Criterion("energy", 0.999), dtype=torch.float16)
    result = extract_adapter(str(tuned), str(tmp_path / "half"), tmp_path / "out.safetensors", options)
    found = load(result.path).weights
    assert found.keys() == weights.keys() and {each.hyperparameters["rank"] for each in found.values()} <= {2, 3}
    assert result.retained > 0.998
    for layer, each in weights.items():
        error = (found[layer].delta_weight(torch.empty(0)) - delta_weight(each)).norm() / delta_weight(each).norm()
        assert error < 0.05


def test_what_is_lost_is_named_with_its_share(tiny_base: Path, tmp_path: Path) -> None:
    weights = known(BaseWeights(tiny_base))
    tuned = tune(tiny_base, tmp_path / "a", weights)
    deltas = {NORM: torch.ones(32), BIAS: torch.full((32,), 2.0)}
    change(tuned, UNET, **deltas)
    names = load_file(tuned / "text_encoder" / "model.safetensors")
    (table,) = (name for name in names if name.endswith(TABLE))
    change(tuned, "text_encoder/model.safetensors", **{table: torch.ones_like(names[table])})
    options = ExtractOptions(rank=2, targets=("attn1", "attn2"), text_encoders=False)
    result = extract_adapter(str(tuned), str(tiny_base), tmp_path / "out.safetensors", options)
    sizes: dict[str, float] = {"norms": 32.0, "biases": 128.0}
    left = total = float(names[table].numel()) + sum(sizes.values())
    for layer, each in weights.items():
        energy = torch.linalg.svdvals(delta_weight(each).flatten(1).double()).square()
        total += float(energy.sum())
        is_target = layer.startswith("unet.") and ("attn1" in layer or "attn2" in layer)
        left += float(energy[2:].sum()) if is_target else float(energy.sum())
        if layer.startswith("unet.") and not is_target:
            group = "layers that no target names"
            sizes[group] = sizes.get(group, 0.0) + float(energy.sum())
    found = {loss.what: loss for loss in result.lost}
    assert {what for what in found if "text_encoder" not in what} == sizes.keys()
    for what, size in sizes.items():
        assert found[what].share == pytest.approx(math.sqrt(size / total), rel=1e-3), what
    assert found["norms"].example == f"unet.{NORM}" and found["biases"].count == 1
    assert result.retained == pytest.approx(math.sqrt(1 - left / total), rel=1e-3)
    (text,) = (loss for what, loss in found.items() if "text_encoder" in what)
    assert text.count > 5 and text.example.endswith(TABLE)
    shares = json.loads(load(result.path).metadata["veneer.extracted.retained"])
    assert shares["attn1.to_q"] == pytest.approx(next(k.retained for k in result.kinds if k.kind == "attn1.to_q"))
    assert shares["with all that was changed"] == pytest.approx(result.retained, abs=1e-6)


def test_the_shares_of_the_kinds_are_those_of_the_singular_values(tiny_base: Path, tmp_path: Path) -> None:
    weights = known(BaseWeights(tiny_base))
    tuned = tune(tiny_base, tmp_path / "a", weights)
    result = extract_adapter(str(tuned), str(tiny_base), tmp_path / "out.safetensors", ExtractOptions(rank=1))
    for kind in ("attn1.to_q", "conv1"):
        values = [
            torch.linalg.svdvals(delta_weight(each).flatten(1).double())
            for layer, each in weights.items()
            if layer.startswith("unet.") and layer.endswith(kind)
        ]
        whole, kept = sum(float(v.square().sum()) for v in values), sum(float(v[0] ** 2) for v in values)
        (share,) = (each for each in result.kinds if each.kind == kind)
        assert share.layers == len(values) and share.ranks == (1, 1)
        assert share.retained == pytest.approx(math.sqrt(kept / whole), rel=1e-4)


@pytest.mark.slow
def test_the_rest_can_be_kept_and_is_merged_again(tiny_base: Path, tmp_path: Path) -> None:
    weights = {name: each for name, each in known(BaseWeights(tiny_base)).items() if name.startswith("unet.")}
    tuned = tune(tiny_base, tmp_path / "a", weights)
    numbers = torch.Generator().manual_seed(2)
    deltas = {name: torch.randn(32, generator=numbers) for name in (NORM, BIAS)}
    change(tuned, UNET, **deltas, **{NORM.replace("weight", "bias"): torch.ones(32)})
    layer = BIAS.removesuffix(".bias")
    change(tuned, UNET, **{f"{layer}.weight": -delta_weight(weights[f"unet.{layer}"])})  # a bias alone
    options = ExtractOptions(rank=3, keep_rest=True, to="kohya")
    result = extract_adapter(str(tuned), str(tiny_base), tmp_path / "out.safetensors", options)
    assert not result.lost and result.retained > 0.9999
    again = merge_adapters([(result.path, 1.0)], tmp_path / "again", base=str(tiny_base)).path
    for name, stored in BaseWeights(tuned).stored.items():
        torch.testing.assert_close(BaseWeights(again).stored[name].read(), stored.read(), rtol=1e-4, atol=1e-5)


def test_a_format_without_a_place_for_the_rest_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    tuned = tune(tiny_base, tmp_path / "a", dict(list(known(BaseWeights(tiny_base)).items())[:3]))
    change(tuned, UNET, **{NORM: torch.ones(32)})
    out = tmp_path / "out.safetensors"
    with raises_code("weights.method_not_in_format"):
        extract_adapter(str(tuned), str(tiny_base), out, ExtractOptions(rank=3, keep_rest=True, text_encoders=True))
    assert not out.exists()


def test_layers_without_change_have_no_adapter(tiny_base: Path, tmp_path: Path) -> None:
    weights = known(BaseWeights(tiny_base))
    some = dict(list(weights.items())[:4])
    tuned = tune(tiny_base, tmp_path / "a", some)
    options = ExtractOptions(rank=3, text_encoders=True)
    result = extract_adapter(str(tuned), str(tiny_base), tmp_path / "out.safetensors", options)
    assert load(result.path).weights.keys() == some.keys()
    assert result.unchanged == len(BaseWeights(tiny_base).stored) - 4
    with raises_code("adapter.nothing_to_extract"):
        extract_adapter(str(tiny_base), str(tiny_base), tmp_path / "none.safetensors", options)


def _without_text_encoder(tuned: Path) -> None:
    shutil.rmtree(tuned / "text_encoder")


def _wider(tuned: Path) -> None:
    tensors = load_file(tuned / UNET)
    save_file({**tensors, "conv_in.weight": torch.zeros(16, 9, 3, 3)}, tuned / UNET)


def _less(tuned: Path) -> None:
    tensors = load_file(tuned / UNET)
    del tensors["conv_out.bias"]
    save_file(tensors, tuned / UNET)


def _more(tuned: Path) -> None:
    save_file({**load_file(tuned / UNET), "more.weight": torch.zeros(3, 3)}, tuned / UNET)


@pytest.mark.parametrize(
    "spoil, told",
    [
        (_without_text_encoder, "the tuned base has no text_encoder."),
        (_wider, "unet.conv_in.weight is (16, 9, 3, 3) in it and (16, 4, 3, 3) in the parent"),
        (_less, "the tuned base has no unet.conv_out.bias"),
        (_more, "the tuned base has unet.more.weight"),
    ],
)
def test_bases_of_different_architectures_are_refused(spoil: Any, told: str, tiny_base: Path, tmp_path: Path) -> None:
    tuned = Path(shutil.copytree(tiny_base, tmp_path / "tuned"))
    spoil(tuned)
    with raises_code("adapter.other_architecture", told):
        options = ExtractOptions(rank=2, text_encoders=True)
        extract_adapter(str(tuned), str(tiny_base), tmp_path / "out.safetensors", options)


def test_a_denoiser_alone_is_compared_with_a_folder(tiny_base: Path, tmp_path: Path) -> None:
    weights = {name: each for name, each in known(BaseWeights(tiny_base)).items() if name.startswith("unet.")}
    tuned = tune(tiny_base, tmp_path / "a", weights)
    out = tmp_path / "out.safetensors"
    result = extract_adapter(str(tuned / UNET), str(tiny_base), out, ExtractOptions(rank=3))
    assert result.retained > 0.9999 and load(out).weights.keys() == weights.keys()


def test_a_text_encoder_that_is_not_extracted_may_be_another(tiny_base: Path, tmp_path: Path) -> None:
    weights = {name: each for name, each in known(BaseWeights(tiny_base)).items() if name.startswith("unet.")}
    tuned = tune(tiny_base, tmp_path / "a", weights)
    file = tuned / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    (table,) = (name for name in tensors if name.endswith(TABLE))
    save_file({**tensors, table: torch.zeros(7, 32), "text_projection.weight": torch.zeros(32, 32)}, file)
    out = tmp_path / "out.safetensors"
    assert extract_adapter(str(tuned), str(tiny_base), out, ExtractOptions(rank=3)).retained > 0.9999
    with raises_code("adapter.other_architecture"):
        options = ExtractOptions(rank=3, text_encoders=True)
        extract_adapter(str(tuned), str(tiny_base), tmp_path / "no.safetensors", options)


def test_numbers_that_are_none_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    tuned = Path(shutil.copytree(tiny_base, tmp_path / "tuned"))
    change(tuned, UNET, **{NORM: torch.full((32,), math.nan)})
    with raises_code("adapter.base_not_finite", NORM):
        extract_adapter(str(tuned), str(tiny_base), tmp_path / "out.safetensors", ExtractOptions(rank=2))


@pytest.mark.parametrize("options", [{}, {"rank": 0}])
def test_a_size_must_be_told(options: dict[str, int]) -> None:
    with raises_code("adapter.bad_rank"):
        ExtractOptions(**options)


def test_the_command_line(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned = tune(tiny_base, tmp_path / "a", known(BaseWeights(tiny_base)))
    out = tmp_path / "out.safetensors"
    command = ["adapter", "extract", str(tuned), "--base", str(tiny_base), "-o", str(out)]
    assert main([*command, "--energy", "0.9", "--max-rank", "2", "--dtype", "float16", "--to", "kohya"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    table = printed.err.splitlines()
    assert table[0].split() == ["layers", "count", "rank", "norm", "kept"] and table[-1].count("weights are equal") == 1
    assert any(line.startswith("lost: ") and "text_encoder" in line for line in table)
    tensors = load_file(out)
    assert {tensor.dtype for name, tensor in tensors.items() if not name.endswith("alpha")} == {torch.float16}
    assert all(name.startswith("lora_unet_") for name in tensors)
    metadata: Mapping[str, str] = load(out, BaseWeights(tiny_base).networks()).metadata
    (entry,) = json.loads(metadata["veneer.history"])
    assert entry["operation"] == "extract" and entry["keeping"] == "energy 0.9" and entry["rank"] == 2
    assert metadata["veneer.base.sha256"] == fingerprint(str(tiny_base)) and "modelspec.merged_from" not in metadata
    assert main([*command, "--rank", "2"]) == 2 and "is there already" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "x"), "--rank", "2", "--max-rank", "3"]) == 2
    assert main([*command[:-1], str(tmp_path / "x")]) == 2


def test_progress_ends_at_all(tiny_base: Path, tmp_path: Path) -> None:
    tuned = tune(tiny_base, tmp_path / "a", dict(list(known(BaseWeights(tiny_base)).items())[:3]))
    told: list[tuple[int, int]] = []
    result: ExtractResult = extract_adapter(
        str(tuned),
        str(tiny_base),
        tmp_path / "out.safetensors",
        ExtractOptions(rank=1, text_encoders=True),
        progress=lambda *each: told.append(each),
    )
    size = sum(stored.nbytes for stored in BaseWeights(tiny_base).stored.values())
    assert told[-1] == (size, size) and told == sorted(told) and result.kinds[-1].kind == "all"
