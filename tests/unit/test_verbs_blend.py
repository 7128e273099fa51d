"""Adapter files blended into one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.errors import raises_code
from veneer.adapter.blend import Pruning
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors, delta_weight
from veneer.cli.main import main
from veneer.family.protocol import Family
from veneer.rng import torch_generator
from veneer.verbs.blend import BlendOptions, BlendSource, BlockWeights, blend_adapters
from veneer.weights.file import AdapterFile, info, load, save


def _factors(shape: tuple[int, ...], rank: int, seed: str) -> LoraFactors:
    random = torch_generator(0, seed)
    down = torch.randn(rank, *shape[1:], generator=random)
    up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=random)
    return LoraFactors(down, up, 2.0)


@pytest.fixture(scope="module")
def files(family: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of the tiny base, of ranks 2 and 3, the second of fewer layers."""
    folder = tmp_path_factory.mktemp("adapters")
    layers = {
        path: tuple(layer.weight.shape)
        for path, layer in layers_of({"unet": family.networks["unet"]}).items()
        if path.endswith((".to_q", ".to_v", ".conv1"))
    }
    said = {"veneer.base": "tiny", "veneer.seed": "0"}
    for name, rank, ending in (("style", 2, ""), ("subject", 3, "to_q")):
        weights = {
            path: _factors(shape, rank, f"{name}{path}") for path, shape in layers.items() if path.endswith(ending)
        }
        metadata = {**said, "veneer.trigger": f"sks {name}", "veneer.base.sha256": name}
        save(AdapterFile(weights, metadata), folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in ("style", "subject")}


def test_a_blend_is_the_weighted_sum(files: dict[str, Path], tmp_path: Path) -> None:
    sources = [BlendSource(files["style"], 0.8), BlendSource(files["subject"], -0.5)]
    result = blend_adapters(sources, tmp_path / "both.safetensors")
    style, subject, both = (load(path).weights for path in (*files.values(), result.path))
    assert set(both) == set(style) and result.layers == len(style) and result.ranks == (2, 5)
    for path, layer in both.items():
        expected = 0.8 * delta_weight(style[path].low_rank())
        if path in subject:
            expected -= 0.5 * delta_weight(subject[path].low_rank())
        torch.testing.assert_close(delta_weight(layer.low_rank()), expected, rtol=1e-5, atol=1e-5)


def test_metadata_says_what_was_blended(files: dict[str, Path], tmp_path: Path) -> None:
    sources = [BlendSource(files["style"], 0.8), BlendSource(files["subject"])]
    options = BlendOptions(2, Pruning("dare", 0.4, seed=3), (BlockWeights("to_q", (0.5,), 2),))
    result = blend_adapters(sources, tmp_path / "both.safetensors", options=options)
    metadata = info(result.path).metadata
    assert metadata["veneer.trigger"] == "sks style, sks subject"
    assert metadata["veneer.base"] == "tiny" and "veneer.base.sha256" not in metadata
    (told,) = json.loads(metadata["veneer.history"])
    assert told["operation"] == "blend" and told["strengths"] == "0.8, 1"
    assert told["sources"] == [
        {"name": f"{name}.safetensors", "sha256": info(files[name]).sha256} for name in ("style", "subject")
    ]
    assert (told["method"], told["density"], told["seed"], told["rank"]) == ("dare", 0.4, 3, 2)
    assert told["block_weights"] == "2:to_q=0.5"
    assert str(tmp_path) not in json.dumps(dict(metadata))
    assert result.warnings and "different bases" in result.warnings[0]


def test_equal_blends_give_equal_bytes(files: dict[str, Path], tmp_path: Path) -> None:
    sources = [BlendSource(file) for file in files.values()]
    options = BlendOptions(pruning=Pruning("dare_ties", 0.4))
    first, second = (
        blend_adapters(sources, tmp_path / f"{n}.safetensors", options=options).path.read_bytes() for n in (1, 2)
    )
    assert first == second


def test_the_last_block_weight_that_matches_counts(files: dict[str, Path], tmp_path: Path) -> None:
    weights = (BlockWeights("*", (0.0,)), BlockWeights("mid_block", (1.0,)), BlockWeights("mid_block.*.to_v", (0.25,)))
    options = BlendOptions(block_weights=weights)
    result = blend_adapters([BlendSource(files["style"])], tmp_path / "mid.safetensors", options=options)
    style, found = load(files["style"]).weights, load(result.path).weights
    assert set(found) == {path for path in style if ".mid_block." in path}
    for path, layer in found.items():
        weight = 0.25 if path.endswith("to_v") else 1.0
        expected = weight * delta_weight(style[path].low_rank())
        torch.testing.assert_close(delta_weight(layer.low_rank()), expected, rtol=1e-5, atol=1e-5)


def test_kohyas_layout_is_blended_with_ours(files: dict[str, Path], tiny_base: Path, tmp_path: Path) -> None:
    tensors = {}
    for name, each in load(files["style"]).weights.items():
        assert isinstance(each, LoraFactors)
        key = "lora_unet_" + name.removeprefix("unet.").replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": each.down.contiguous(), f"{key}.lora_up.weight": each.up.contiguous()}
        tensors[f"{key}.alpha"] = torch.tensor(each.alpha)
    save_file(tensors, tmp_path / "kohya.safetensors")
    out = {name: tmp_path / f"{name}.safetensors" for name in ("mixed", "same", "ours")}
    sources = [BlendSource(tmp_path / "kohya.safetensors"), BlendSource(files["subject"])]
    blend_adapters(sources, out["mixed"], base=str(tiny_base), to="diffusers")
    blend_adapters(sources, out["same"], base=str(tiny_base))
    blend_adapters([BlendSource(file) for file in files.values()], out["ours"])
    assert info(out["same"]).format == "kohya"
    mixed, ours = load(out["mixed"]).weights, load(out["ours"]).weights
    assert set(mixed) == set(ours)
    for path, layer in mixed.items():
        torch.testing.assert_close(delta_weight(layer.low_rank()), delta_weight(ours[path].low_rank()))


def test_nothing_is_written_over_and_mistakes_name_their_file(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    with raises_code("output.exists"):
        blend_adapters([BlendSource(files["style"])], tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"
    other = tmp_path / "other.safetensors"
    save(AdapterFile({next(iter(load(files["style"]).weights)): _factors((3, 5), 1, "other")}), other)
    with raises_code("adapter.different_architectures", str(other)):
        blend_adapters([BlendSource(files["style"]), BlendSource(other)], tmp_path / "out")
    with raises_code("adapter.bad_block_weights", "for adapter 3, and there are 1"):
        options = BlendOptions(block_weights=(BlockWeights("to_q", (1.0,), 3),))
        blend_adapters([BlendSource(files["style"])], tmp_path / "out", options=options)
    with raises_code("adapter.no_layer_matches"):
        options = BlendOptions(block_weights=(BlockWeights("to_z", (1.0,)),))
        blend_adapters([BlendSource(files["style"])], tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_the_command(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both.safetensors"
    words = ["adapter", "blend", f"{files['style']}:0.8", f"{files['subject']}:-.5", "-o", str(out), "--rank", "2"]
    assert main([*words, "--method", "ties", "--density", "0.4", "--block-weights", "2:mid_block=0.5"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out) and "layers of rank 2" in printed.err
    (told,) = json.loads(info(out).metadata["veneer.history"])
    assert told["block_weights"] == "2:mid_block=0.5" and told["strengths"] == "0.8, -0.5"
    words[-3] = str(tmp_path / "other")
    for wrong, said in (
        (["--density", "0.4"], "only with --method"),
        (["--block-weights", "0.5"], "are no block weights"),
        (["--block-weights", "mid_block=1,2"], "are no block weights"),
        (["--block-weights", "1,0,1"], "a list of 3 block weights"),
    ):
        assert main([*words, *wrong]) == 2
        assert said in capsys.readouterr().err
