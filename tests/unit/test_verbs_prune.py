"""Layers of an adapter file dropped."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.errors import raises_code
from veneer.adapter.dora import DoraFactors
from veneer.adapter.layers import layers_of
from veneer.adapter.lora import LoraFactors
from veneer.cli.main import main
from veneer.family.protocol import Family
from veneer.rng import torch_generator
from veneer.verbs.blend import BlendSource, blend_adapters
from veneer.verbs.compare import compare_adapters
from veneer.verbs.prune import PruneOptions, prune_adapter
from veneer.verbs.resize import resize_adapter
from veneer.weights.file import AdapterFile, info, load, save
from veneer.weights.formats.folding import fold_exactly
from veneer.weights.safetensors import decode


@pytest.fixture(scope="module")
def file(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of both networks of the tiny base."""
    path = tmp_path_factory.mktemp("adapters") / "both.safetensors"
    endings = (".to_q", ".to_v", ".q_proj", ".conv1")
    weights = {}
    for name, layer in layers_of(family.networks).items():
        if name.endswith(endings):
            shape, random = tuple(layer.weight.shape), torch_generator(0, name)
            down = torch.randn(2, *shape[1:], generator=random)
            weights[name] = LoraFactors(down, torch.randn(shape[0], 2, *[1] * (len(shape) - 2), generator=random), 2.0)
    save(AdapterFile(weights, {"veneer.trigger": "sks"}), path)
    return path


def assert_bits(file: Path, out: Path) -> None:
    """What is left is as it was, bit for bit."""
    before, after = load(file).weights, load(out).weights
    for path, layer in after.items():
        assert all(torch.equal(tensor, before[path].state_dict()[part]) for part, tensor in layer.state_dict().items())


def test_text_encoders_are_dropped(file: Path, tmp_path: Path) -> None:
    result = prune_adapter(file, tmp_path / "out.safetensors", PruneOptions(text_encoder=True))
    before, after = load(file).weights, load(result.path).weights
    assert set(after) == {path for path in before if path.startswith("unet.")} and result.kept == len(after)
    assert all(block.startswith("text_encoder.") for block in result.dropped)
    assert sum(result.dropped.values()) == len(before) - len(after)
    squares = {path: each.squared_norm() for path, each in before.items()}
    expected = math.sqrt(sum(squares[path] for path in after) / sum(squares.values()))
    assert result.retained == pytest.approx(expected)
    assert_bits(file, result.path)
    assert (result.bytes_before, result.bytes_after) == (info(file).size_bytes, info(result.path).size_bytes)
    metadata = info(result.path).metadata
    assert metadata["veneer.trigger"] == "sks"
    assert json.loads(metadata["veneer.history"])[0]["text_encoder"] is True


def test_blocks_are_dropped_and_kept_by_pattern(file: Path, tmp_path: Path) -> None:
    before = load(file).weights
    dropped = prune_adapter(file, tmp_path / "a.safetensors", PruneOptions(blocks=["down_blocks.0", "attn2.*"]))
    assert set(load(dropped.path).weights) == {
        path for path in before if ".down_blocks.0." not in path and ".attn2." not in path
    }
    kept = prune_adapter(file, tmp_path / "b.safetensors", PruneOptions(keep=["mid_block", "to_q"], blocks=["attn1"]))
    assert set(load(kept.path).weights) == {
        path for path in before if (".mid_block." in path or path.endswith("to_q")) and ".attn1." not in path
    }
    assert_bits(file, kept.path)


def test_what_is_no_part_of_the_adapter_is_named(file: Path, tmp_path: Path) -> None:
    tensors, metadata = decode(file)
    tensors["bundle_emb.sks.clip_l"] = torch.ones(1, 768)
    more = tmp_path / "more.safetensors"
    save_file(tensors, more, metadata)
    for notes in (
        prune_adapter(more, tmp_path / "a.safetensors", PruneOptions(True)).notes,
        resize_adapter(more, 1, tmp_path / "b.safetensors").notes,
        blend_adapters([BlendSource(more)], tmp_path / "c.safetensors").warnings,
        compare_adapters(more, file).notes,
    ):
        (note,) = notes
        assert note.startswith("of more.safetensors bundle_emb.sks.clip_l is left out")


def test_a_strength_that_is_not_one_keeps_every_bit(file: Path, tiny_base: Path, tmp_path: Path) -> None:
    """diffusers' files have alpha / r = 0.35 in B, which is rounded; what is left comes out as it was all the same."""
    given = {path: LoraFactors(each.down, each.up, 0.7) for path, each in load(file).weights.items()}
    weights = prune_adapter(_saved(given, tmp_path), tmp_path / "a.safetensors", PruneOptions(True)).path
    for to in ("kohya", "diffusers"):
        whole = prune_adapter(
            _saved(given, tmp_path),
            tmp_path / f"{to}.safetensors",
            PruneOptions(blocks=["mid_block"]),
            base=str(tiny_base),
            to=to,
        )
        again = prune_adapter(
            whole.path, tmp_path / f"{to}2.safetensors", PruneOptions(True), base=str(tiny_base), to="diffusers"
        )
        for path, layer in load(again.path).weights.items():
            assert torch.equal(layer.state_dict()["up"], load(weights).weights[path].state_dict()["up"])
            assert layer.hyperparameters["alpha"] == pytest.approx(0.7)


def _saved(weights: dict[str, LoraFactors], folder: Path) -> Path:
    path = folder / "given.safetensors"
    save(AdapterFile(*fold_exactly(weights)), path)
    return path


def test_what_would_do_nothing_or_everything_is_refused(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    for options, code in (
        (PruneOptions(), "adapter.nothing_dropped"),
        (PruneOptions(keep=["*"]), "adapter.nothing_dropped"),
        (PruneOptions(blocks=["*"]), "adapter.nothing_left"),
        (PruneOptions(text_encoder=True, keep=["text_encoder"]), "adapter.nothing_left"),
        (PruneOptions(keep=["down_blocks.7"]), "adapter.no_layer_matches"),
    ):
        with raises_code(code):
            prune_adapter(file, out, options)
    only = prune_adapter(file, tmp_path / "only.safetensors", PruneOptions(text_encoder=True)).path
    with raises_code("adapter.no_layer_matches", "changes no text encoder"):
        prune_adapter(only, out, PruneOptions(text_encoder=True))
    with raises_code("output.exists"):
        prune_adapter(file, only, PruneOptions(text_encoder=True))
    assert not out.exists()


def test_any_method_is_pruned_and_its_norm_told_where_the_base_is_known(
    file: Path, tiny_base: Path, tmp_path: Path
) -> None:
    dora = {}
    for path, each in load(file).weights.items():
        assert isinstance(each, LoraFactors)
        dora[path] = DoraFactors(each, torch.ones(each.shape[0], *[1] * (len(each.shape) - 1)))
    save(AdapterFile(dora), tmp_path / "dora.safetensors")
    alone = prune_adapter(tmp_path / "dora.safetensors", tmp_path / "a.safetensors", PruneOptions(blocks=["mid_block"]))
    assert alone.retained is None
    assert_bits(tmp_path / "dora.safetensors", alone.path)
    beside = prune_adapter(
        tmp_path / "dora.safetensors", tmp_path / "b.safetensors", PruneOptions(True), base=str(tiny_base)
    )
    assert beside.retained is not None and 0 < beside.retained < 1


def test_the_command(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["adapter", "prune", str(file), "-o", str(out), "--text-encoder", "--blocks", "mid_block"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "unet.mid_block" in printed.err and "text_encoder.encoder.layers.0" in printed.err
    assert "of the norm of delta W" in printed.err and "bytes before" in printed.err
    assert main(["adapter", "prune", str(file), "-o", str(tmp_path / "b"), "--blocks", "mid_blok"]) == 2
    assert "mid_block" in capsys.readouterr().err
