"""Two adapter files compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.errors import raises_code
from veneer.adapter.compare import update_of
from veneer.adapter.dora import DoraFactors
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors, delta_weight
from veneer.cli.main import main
from veneer.family.protocol import Family
from veneer.rng import torch_generator
from veneer.verbs.compare import compare_adapters, comparison_data
from veneer.verbs.compare_plot import write_comparison_plot
from veneer.weights.checkpoint import Provenance, write_checkpoint
from veneer.weights.file import AdapterFile, load, save


def _factors(shape: tuple[int, ...], rank: int, seed: str) -> LoraFactors:
    random = torch_generator(0, seed)
    down = torch.randn(rank, *shape[1:], generator=random)
    return LoraFactors(down, torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=random), 2.0)


@pytest.fixture(scope="module")
def files(family: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter, the same at half its strength with fewer layers, another of a higher rank, and a DoRA."""
    folder = tmp_path_factory.mktemp("adapters")
    layers = {
        path: tuple(layer.weight.shape)
        for path, layer in layers_of({"unet": family.networks["unet"]}).items()
        if path.endswith((".to_q", ".to_v", ".conv1"))
    }
    one = {path: _factors(shape, 2, path) for path, shape in layers.items()}
    half = {path: LoraFactors(each.down, each.up, 1.0) for path, each in one.items() if not path.endswith("to_v")}
    other = {path: _factors(shape, 3, f"other{path}") for path, shape in layers.items()}
    dora = {
        path: DoraFactors(each, torch.ones(each.shape[0], *[1] * (len(each.shape) - 1))) for path, each in one.items()
    }
    for name, weights in (("one", one), ("half", half), ("other", other), ("dora", dora)):
        save(AdapterFile(weights), folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in ("one", "half", "other", "dora")}


def test_an_adapter_with_itself(files: dict[str, Path]) -> None:
    overall = compare_adapters(files["one"], files["one"]).overall
    assert overall.cosine == pytest.approx(1) and overall.drift < 1e-7
    assert all(phi == pytest.approx(1) for phi in overall.similarity.values())
    assert overall.amplification == (None, None)


def test_half_the_strength_is_half_the_way_and_missing_layers_count(files: dict[str, Path]) -> None:
    comparison = compare_adapters(files["one"], files["half"])
    kinds = {kind.name: kind for kind in comparison.kinds}
    assert kinds["attn1.to_q"].cosine == pytest.approx(1) and kinds["attn1.to_q"].drift == pytest.approx(0.5)
    assert math.isnan(kinds["attn1.to_v"].cosine) and kinds["attn1.to_v"].drift == pytest.approx(1)
    assert kinds["attn1.to_v"].lacking == (0, kinds["attn1.to_v"].layers)
    squares = {path: float(delta_weight(each).square().sum()) for path, each in load(files["one"]).weights.items()}
    shared = sum(square for path, square in squares.items() if not path.endswith("to_v"))
    assert comparison.overall.cosine == pytest.approx(math.sqrt(shared / sum(squares.values())), rel=1e-5)
    assert comparison.overall.norms[1] == pytest.approx(0.5 * math.sqrt(shared), rel=1e-5)


def test_other_ranks_share_what_chance_has(files: dict[str, Path]) -> None:
    comparison = compare_adapters(files["one"], files["other"])
    overall = comparison.overall
    assert abs(overall.cosine) < 0.05
    for side, phi in overall.similarity.items():
        assert phi == pytest.approx(overall.by_chance[side], rel=0.5)
    grid = comparison.grid("A")
    assert grid is not None and grid.shape == (2, 3)


def test_the_base_tells_what_is_amplified(files: dict[str, Path], tiny_base: Path, family: Family) -> None:
    comparison = compare_adapters(files["one"], files["other"], base=str(tiny_base))
    path = next(iter(comparison.layers))
    own = comparison.layers[path].amplifications[0]
    weight = layers_of({"unet": family.networks["unet"]})[path].weight.detach().double().flatten(1)
    update = update_of(path, load(files["one"]).weights[path])
    inside = float((update.bases["output"] @ weight @ update.bases["input"].T).norm())
    assert own is not None and own.within == pytest.approx(inside) and own.rank == 2
    assert own.weight_norm == pytest.approx(float(weight.norm()))
    assert comparison.overall.amplification[0] is not None and comparison.overall.alignment[1] is not None


def test_a_dora_is_compared_beside_its_base(files: dict[str, Path], tiny_base: Path) -> None:
    with raises_code("adapter.needs_base", "has a DoRA adapter"):
        compare_adapters(files["one"], files["dora"])
    comparison = compare_adapters(files["one"], files["dora"], base=str(tiny_base))
    assert 0 < comparison.overall.cosine < 1
    assert "A" not in comparison.overall.similarity and "output" in comparison.overall.similarity


def test_adapters_of_other_bases_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    path = next(iter(load(files["one"]).weights))
    save(AdapterFile({path: _factors((3, 5), 1, "x")}), tmp_path / "shape.safetensors")
    with raises_code("adapter.different_architectures") as caught:
        compare_adapters(files["one"], tmp_path / "shape.safetensors")
    assert path in str(caught.value)
    save(AdapterFile({"unet.elsewhere": _factors((3, 5), 1, "x")}), tmp_path / "layer.safetensors")
    with raises_code("adapter.nothing_in_common", "no layer in common"):
        compare_adapters(files["one"], tmp_path / "layer.safetensors")


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_checkpoints_are_compared(method: str, files: dict[str, Path], tiny_base: Path, tmp_path: Path) -> None:
    """Their state has the adapter by its parameters' names, and their manifest what alpha is."""
    plan = {"method": method, "rank": 2, "alpha": 4.0, "text_encoders": {}}
    provenance = Provenance({"adapter": plan, "data": {"trigger": "sks"}}, {}, "0", 1, {})
    one = load(files["one" if method == "lora" else "dora"]).weights
    for step, strength in ((10, 1.0), (20, 1.5)):
        state = {"step": torch.tensor(step)}
        for path, layer in one.items():
            lora = layer.lora if isinstance(layer, DoraFactors) else layer
            assert isinstance(lora, LoraFactors)
            state[f"adapter.{path}.lora_A.weight"] = lora.down
            state[f"adapter.{path}.lora_B.weight"] = strength * lora.up
            state[f"optimizer.exp_avg.{path}.lora_A.weight"] = lora.down
            if isinstance(layer, DoraFactors):
                state[f"adapter.{path}.lora_magnitude_vector"] = strength * layer.magnitude.flatten()
        write_checkpoint(tmp_path / "run" / "checkpoints", step, state, provenance)
    folders = [tmp_path / "run" / "checkpoints" / f"step-{step:09d}" for step in (10, 20)]
    comparison = compare_adapters(*folders, base=str(tiny_base))
    assert comparison.names == ("run step-000000010", "run step-000000020")
    assert set(comparison.layers) == set(one)
    if method == "lora":
        assert comparison.overall.drift == pytest.approx(0.5) and comparison.overall.cosine == pytest.approx(1)
        double = compare_adapters(files["one"], folders[0]).overall
        assert double.norms[1] == pytest.approx(2 * double.norms[0])  # alpha is 4 here, and 2 in the file
    else:
        assert 0 < comparison.overall.drift < 1


def test_the_picture(files: dict[str, Path], tiny_base: Path, tmp_path: Path) -> None:
    comparison = compare_adapters(files["one"], files["other"], base=str(tiny_base))
    write_comparison_plot(comparison, tmp_path / "a.png")
    write_comparison_plot(comparison, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 1000 and picture.height > 700
    with raises_code("output.exists"):
        write_comparison_plot(comparison, tmp_path / "a.png")
    with raises_code("output.not_png"):
        write_comparison_plot(comparison, tmp_path / "a.svg")


def test_the_command(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["adapter", "compare", str(files["one"]), str(files["half"])]
    assert main([*words, "--plot", str(tmp_path / "c.png")]) == 0
    printed = capsys.readouterr().out
    assert "half does mostly the same as one: the cosine of their changes is 0." in printed
    assert "half lacks " in printed and "phi of outputs" in printed and (tmp_path / "c.png").is_file()
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(json.dumps(data)) and data["adapters"] == ["one", "half"]
    assert data["all"]["cosine"] == pytest.approx(
        comparison_data(compare_adapters(*map(Path, words[2:])))["all"]["cosine"]
    )
    assert set(data["layers"]) == set(load(files["one"]).weights) and len(data["phi"]["A"]) == 2
