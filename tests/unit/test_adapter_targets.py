"""Presets of targets, blocks and their coverage, on networks small enough to be read."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tests.errors import raises_code
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraSpec
from veneer.adapter.targets import (
    Block,
    BlockCoverage,
    blocks_of,
    expand_preset,
    layers_in_blocks,
    measure_coverage,
    names_in_blocks,
)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.proj = nn.Linear(4, 4), nn.Linear(4, 4)
        self.to_out = nn.ModuleList([nn.Linear(4, 4), nn.Dropout(0.0)])


class DoubleBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({"linear": nn.Linear(4, 8)})
        self.img_mod = nn.Sequential(nn.SiLU(), nn.Linear(4, 8))
        self.attn = Attention()
        self.ff = nn.ModuleDict({"net": nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(4, 4)}), nn.Linear(4, 4)])})


class SingleBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"fused": Attention()})
        self.proj_out = nn.Linear(4, 4)
        self.conv = nn.Conv2d(1, 1, 1)


class Projections(nn.Module):
    """A list without attention is no stack of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.captions = Projections()
        self.refiner = nn.ModuleDict({"blocks": nn.ModuleList([SingleBlock()])})
        self.double_blocks = nn.ModuleList([DoubleBlock() for _ in range(3)])
        self.single_blocks = nn.ModuleList([SingleBlock() for _ in range(11)])
        self.proj_out, self.norm_out = nn.Linear(4, 4), nn.ModuleDict({"linear": nn.Linear(4, 4)})


class Ladder(nn.Module):
    """Blocks with attention and without, and one that stands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList([nn.ModuleDict({"res": nn.Linear(4, 4)}), SingleBlock()])
        self.mid_block = SingleBlock()


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


def test_blocks_are_elements_of_lists_that_attend(net: Net) -> None:
    paths = ["refiner.blocks.0", *(f"double_blocks.{n}" for n in range(3)), *(f"single_blocks.{n}" for n in range(11))]
    assert [block.path for block in blocks_of(net)] == paths
    assert blocks_of(Ladder()) == (
        Block("down_blocks.0", attends=False),
        Block("down_blocks.1", attends=True),
        Block("mid_block", attends=True),
    )
    assert blocks_of(Projections()) == ()


def test_presets_are_the_shortest_names_and_the_blocks_that_they_are_for(net: Net) -> None:
    blocks = ("refiner.blocks.0", "double_blocks.0-2", "single_blocks.0-10")
    names, found = expand_preset(net, "all_linear")
    assert found == blocks
    assert names == ("to_q", "proj", "to_out.0", "proj_out", "linear", "img_mod.1", "net.1")
    # "proj" alone would be the feed-forward's too
    assert expand_preset(net, "attention") == (("to_q", "fused.proj", "to_out.0", "attn.proj"), blocks)
    names, _ = expand_preset(net, "attention_mlp")
    assert names == ("to_q", "proj", "to_out.0", "proj_out", "net.1")


def test_a_preset_reaches_no_layer_outside_the_blocks(net: Net) -> None:
    names, blocks = expand_preset(net, "all_linear")
    injection = inject({"net": copy.deepcopy(net)}, {"net": LoraSpec(2, 2.0, names, blocks=blocks)}, 0)
    adapted = {module.removeprefix("net.") for match in injection.matches for module in match.modules}
    linear = {path for path, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    assert adapted == {path for path in linear if path.startswith(("refiner", "double", "single"))}
    assert injection.block_coverage() == {"net": BlockCoverage(15, 15)}


def test_a_preset_within_blocks_has_the_names_of_these(net: Net) -> None:
    assert expand_preset(net, "attention", ["double_blocks.1"]) == (
        ("to_q", "attn.proj", "to_out.0"),
        ("double_blocks.1",),
    )
    assert expand_preset(net, "all_linear", ["single_blocks.3-4"])[0] == ("to_q", "proj", "to_out.0", "proj_out")
    assert names_in_blocks(net, ("to_q", "img_mod.1", "nothing"), ["single_blocks.2"]) == ("to_q",)


def test_a_base_may_say_what_a_preset_means(net: Net) -> None:
    names, _ = expand_preset(net, "attention_mlp", ["single_blocks.0"], own=("to_q", "img_mod.1", "proj_out"))
    assert names == ("to_q", "proj_out")


def test_blocks_may_begin_anywhere_and_have_ranges() -> None:
    paths = [f"{stack}.{n}.attn.{m}.to_q" for stack in ("up.blocks", "blocks") for n in (1, 2, 10) for m in (0, 1)]
    assert layers_in_blocks(paths, []) == paths
    assert layers_in_blocks(paths, ["blocks.1"]) == [path for path in paths if "blocks.1." in path]
    assert layers_in_blocks(paths, ["up.blocks.1-2.attn.1", "attn.0"]) == [
        path for path in paths if ".attn.0" in path or path.startswith(("up.blocks.1.", "up.blocks.2."))
    ]


@pytest.mark.parametrize(
    ("block", "code", "words"),
    [
        ("double_blocks.3", "adapter.no_such_block", "there are double_blocks.0-2, refiner.blocks.0, single"),
        ("double_blocks.2-4", "adapter.no_such_block", "'double_blocks.3'"),
        ("louble_blocks.1", "adapter.no_such_block", "'louble_blocks.1'"),
        ("double_blocks.2-1", "adapter.bad_block_range", "write 1-2"),
        ("double_blocks.0-99999999999", "adapter.no_such_block", "double_blocks.0-99999999999"),
    ],
)
def test_a_block_that_is_not_there_is_refused(net: Net, block: str, code: str, words: str) -> None:
    if block.startswith("double_blocks.0-9"):
        words = "no layer is in block"
    with raises_code(code, words):
        expand_preset(net, "attention", [block])
    with raises_code(code, words):
        inject({"net": net}, {"net": LoraSpec(2, 2.0, ("to_q",), blocks=(block,))}, 0)


def test_what_is_nothing_within_the_blocks_is_refused(net: Net) -> None:
    with raises_code("adapter.target_matches_nothing", "within captions.layers"):
        expand_preset(net, "attention", ["captions.layers"])
    with raises_code("adapter.target_matches_nothing"):
        names_in_blocks(net, ("img_mod.1",), ["single_blocks"])
    with raises_code("adapter.target_matches_nothing", "img_mod.1"):
        inject({"net": net}, {"net": LoraSpec(2, 2.0, ("to_q", "img_mod.1"), blocks=("single_blocks",))}, 0)
    with raises_code("adapter.no_blocks"):
        expand_preset(Projections(), "all_linear")


def test_a_preset_in_a_list_is_told_to_stand_alone(net: Net) -> None:
    with raises_code("adapter.target_matches_nothing", "write target_modules=all_linear, not in a list"):
        inject({"net": net}, {"net": LoraSpec(2, 2.0, ("all_linear",))}, 0)


def test_coverage_tells_the_blocks_that_are_left_out(net: Net) -> None:
    adapted = ["proj_out", *(f"double_blocks.{n}.attn.to_q" for n in range(3)), "single_blocks.4.proj_out"]
    left_out = ("refiner.blocks.0", "single_blocks.0-3", "single_blocks.5-10")
    coverage = measure_coverage(net, adapted)
    assert coverage == BlockCoverage(4, 15, left_out)
    assert str(coverage) == "4 of 15 (none of refiner.blocks.0, single_blocks.0-3, single_blocks.5-10)"
    # what has no attention is not missed
    assert measure_coverage(Ladder(), ["down_blocks.1.proj_out"]) == BlockCoverage(1, 3, ("mid_block",))
    assert str(BlockCoverage(3, 3)) == "3 of 3"


def test_peft_finds_the_same_layers_by_the_same_plan(net: Net) -> None:
    spec = LoraSpec(2, 2.0, ("to_q", "proj_out"), blocks=("single_blocks.3-4", "double_blocks.1", "blocks.0"))
    theirs = inject_adapter_in_model(spec.to_peft(), copy.deepcopy(net))
    found = {path for path, module in theirs.named_modules() if isinstance(module, BaseTunerLayer)}
    ours = inject({"net": copy.deepcopy(net)}, {"net": spec}, 0)
    assert found == {module.removeprefix("net.") for match in ours.matches for module in match.modules}


@cache
def _empty_net() -> Net:
    with torch.device("meta"):
        return Net()


@given(st.sets(st.integers(0, 10), min_size=1))
def test_ranges_stand_for_what_they_join(numbers: set[int]) -> None:
    net = _empty_net()
    adapted = [f"single_blocks.{number}.proj_out" for number in range(11) if number not in numbers]
    coverage = measure_coverage(net, [*adapted, "refiner.blocks.0.proj_out", "double_blocks.0-2"])
    blocks = [block for block in coverage.left_out if block.startswith("single_blocks")]
    paths = [f"single_blocks.{n}.proj_out" for n in range(11)]
    assert layers_in_blocks(paths, blocks) == [f"single_blocks.{n}.proj_out" for n in sorted(numbers)]
