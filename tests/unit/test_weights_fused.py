"""Layers that files keep as rows of a larger one: cut and joined without a bit lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.errors import raises_code
from veneer.adapter.biased import BiasedAdapter
from veneer.adapter.dora import DORA, DoraFactors
from veneer.adapter.full import FullDifference, NormDifference
from veneer.adapter.loha import LohaFactors
from veneer.adapter.lokr import LokrFactors
from veneer.adapter.lora import LORA, LoraFactors
from veneer.adapter.protocol import LayerAdapter
from veneer.weights.file import load
from veneer.weights.formats.fused import Slice, cut, join, join_layers, swapped_halves
from veneer.weights.formats.kohya import KOHYA
from veneer.weights.formats.protocol import BaseNames

HEIGHTS = (6, 2, 2, 8)
"""Outputs of q, k, v (of fewer heads) and of the MLP's first matrix, as one matrix has them."""


def slices_of(heights: tuple[int, ...]) -> dict[str, Slice]:
    offsets = [sum(heights[:each]) for each in range(len(heights))]
    return {f"layer{each}": Slice("net.fused", offset, height, sum(heights))
            for each, (offset, height) in enumerate(zip(offsets, heights, strict=True))}  # fmt: skip


SLICES = slices_of(HEIGHTS)


def lora(outputs: int, rank: int, alpha: float = 2.0, dtype: torch.dtype = torch.float32) -> LoraFactors:
    return LoraFactors(torch.randn(rank, 5, dtype=dtype), torch.randn(outputs, rank, dtype=dtype), alpha)


def delta(adapter: LayerAdapter) -> Tensor:
    return adapter.to("cpu", torch.float64).delta_weight(torch.zeros(adapter.shape, dtype=torch.float64))


def assert_equal(one: LayerAdapter, other: LayerAdapter) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name


def test_each_layer_gets_its_rows_of_b_and_all_get_a() -> None:
    whole = lora(18, 4)
    cuts = cut(whole, SLICES)
    assert torch.equal(torch.cat([delta(each) for each in cuts.values()]), delta(whole))
    for each in cuts.values():
        assert isinstance(each, LoraFactors) and torch.equal(each.down, whole.down) and each.alpha == whole.alpha
    assert_equal(join({SLICES[name]: adapter for name, adapter in cuts.items()}), whole)


@settings(max_examples=150, deadline=None)
@given(
    ranks=st.tuples(*[st.integers(1, 7)] * 4),
    present=st.sets(st.integers(0, 3), min_size=1),
    magnitudes=st.booleans(),
    order=st.permutations(range(4)),
)
def test_what_was_joined_is_cut_into_the_same_adapters(
    ranks: tuple[int, ...], present: set[int], magnitudes: bool, order: list[int]
) -> None:
    """Of one strength, any ranks, any layers missing: each tensor comes back to the bit, at the rank that it had."""
    names = [f"layer{each}" for each in order if magnitudes or each in present]
    adapters: dict[str, LayerAdapter] = {}
    for name in names:
        height, rank = SLICES[name].length, ranks[int(name[-1])]
        plain = lora(height, rank, alpha=rank / 2)
        adapters[name] = DoraFactors(plain, torch.rand(height, 1)) if magnitudes else plain
    joined = join({SLICES[name]: adapter for name, adapter in adapters.items()})
    assert joined.shape == (18, 5) and joined.hyperparameters["alpha"] == joined.hyperparameters["rank"] / 2
    assert joined.hyperparameters["rank"] == sum(ranks[int(name[-1])] for name in names)
    cuts = cut(joined, SLICES)
    assert cuts.keys() == adapters.keys()
    for name, adapter in adapters.items():
        assert_equal(cuts[name], adapter)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0.01, 100)), min_size=4, max_size=4))
def test_different_strengths_become_one(parts: list[tuple[int, float]]) -> None:
    adapters = [lora(height, rank, alpha) for height, (rank, alpha) in zip(HEIGHTS, parts, strict=True)]
    joined = join(dict(zip(SLICES.values(), adapters, strict=True)))
    sizes = [LoraFactors(each.down.abs(), each.up.abs(), each.alpha) for each in adapters]
    error = (delta(joined) - torch.cat([delta(adapter) for adapter in adapters])).abs()
    assert (error <= 2**-23 * torch.cat([delta(size) for size in sizes])).all()


def test_strengths_that_differ_by_powers_of_two_are_told_without_rounding() -> None:
    adapters = [lora(height, 4, alpha, torch.bfloat16) for height, alpha in zip(HEIGHTS, (4, 1, 0, -2), strict=True)]
    joined = join(dict(zip(SLICES.values(), adapters, strict=True)))
    assert joined.state_dict()["up"].dtype == torch.bfloat16
    assert torch.equal(delta(joined), torch.cat([delta(adapter) for adapter in adapters]))
    adapters[0] = lora(6, 4, 3, torch.bfloat16)
    assert join(dict(zip(SLICES.values(), adapters, strict=True))).state_dict()["up"].dtype == torch.float32


def test_rows_of_layers_without_an_adapter_stay_as_they_are() -> None:
    joined = join({SLICES["layer2"]: lora(2, 3, 3.0)})
    assert joined.shape == (18, 5) and not delta(joined)[:8].any() and not delta(joined)[10:].any()


def test_layers_that_share_a_keep_sharing_it_unless_one_is_missing() -> None:
    cuts = cut(lora(18, 4), SLICES)
    del cuts["layer3"]
    joined = join({SLICES[name]: adapter for name, adapter in cuts.items()})
    assert joined.hyperparameters["rank"] == 12
    for name, adapter in cut(joined, SLICES).items():
        assert_equal(adapter, cuts[name])


def test_adapters_without_training_come_back_at_equal_ranks() -> None:
    fresh = {name: LoraFactors(torch.randn(3, 5), torch.zeros(part.length, 3), 3.0) for name, part in SLICES.items()}
    cuts = cut(join({SLICES[name]: adapter for name, adapter in fresh.items()}), SLICES)
    for name, adapter in fresh.items():
        assert_equal(cuts[name], adapter)


def test_convolutions_are_cut_and_joined() -> None:
    adapters = {
        part: LoraFactors(torch.randn(3, 5, 2, 2), torch.randn(part.length, 3, 1, 1), 1.0) for part in SLICES.values()
    }
    joined = join(adapters)
    assert joined.shape == (18, 5, 2, 2)
    for name, adapter in cut(joined, SLICES).items():
        assert_equal(adapter, adapters[SLICES[name]])


def test_halves_are_swapped_and_swapped_back() -> None:
    own, part = lora(8, 3), swapped_halves("net.native", 8)
    joined = join({part: own})
    assert torch.equal(joined.state_dict()["up"], torch.cat([own.up[4:], own.up[:4]]))
    assert_equal(cut(joined, {"one": part})["one"], own)


def test_methods_that_do_not_tell_outputs_apart_are_refused_by_name() -> None:
    over_inputs = DoraFactors(lora(18, 4), torch.rand(1, 5))
    with raises_code("adapter.cannot_cut", "DoRA"):
        cut(over_inputs, SLICES)
    with raises_code("adapter.cannot_join"):
        join({SLICES["layer0"]: DoraFactors(lora(6, 4), torch.rand(1, 5))})
    with raises_code("adapter.cannot_join", "DoRA"):
        join({SLICES["layer0"]: DoraFactors(lora(6, 4), torch.rand(6, 1))})
    with raises_code("adapter.cannot_join", "DoRA and LoRA"):
        join({SLICES["layer0"]: DoraFactors(lora(6, 4), torch.rand(6, 1)), SLICES["layer1"]: lora(2, 4)})


def test_a_method_that_names_no_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = replace(LORA, row_parts={})
    monkeypatch.setattr(LoraFactors, "method", property(lambda self: unknown))
    with raises_code("adapter.cannot_cut"):
        cut(lora(18, 4), SLICES)
    with raises_code("adapter.cannot_join"):
        join({SLICES["layer0"]: lora(6, 4)})


def test_a_layer_of_another_size_is_of_another_architecture() -> None:
    with raises_code("adapter.other_architecture"):
        cut(lora(17, 4), SLICES)


def loha(outputs: int, rank: int, alpha: float) -> LohaFactors:
    parts = {"hada_w1_a": (outputs, rank), "hada_w1_b": (rank, 5), "hada_w2_a": (outputs, rank), "hada_w2_b": (rank, 5)}
    return LohaFactors({part: torch.randn(shape) for part, shape in parts.items()}, {"alpha": alpha})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=4, max_size=4), st.booleans())
def test_loha_is_joined_and_cut_as_lora_is(ranks: list[int], differ: bool) -> None:
    """Both of its products have rows of their own; of different strengths, the first has the rest of them."""
    adapters = {name: loha(part.length, rank, rank / (rank + 1 if differ else 2))
                for (name, part), rank in zip(SLICES.items(), ranks, strict=True)}  # fmt: skip
    joined = join({SLICES[name]: adapter for name, adapter in adapters.items()})
    expected = torch.cat([delta(adapter) for adapter in adapters.values()])
    torch.testing.assert_close(delta(joined), expected, rtol=1e-5, atol=1e-6)
    for name, adapter in cut(joined, SLICES).items():
        torch.testing.assert_close(delta(adapter), delta(adapters[name]), rtol=1e-5, atol=1e-6)
        if not differ:
            assert_equal(adapter, adapters[name])


def lokr(rows: int, block: int) -> LokrFactors:
    return LokrFactors({"lokr_w1": torch.randn(rows, 5), "lokr_w2": torch.randn(block, 1)}, {"alpha": 1.0})


def test_lokr_is_cut_where_no_slice_ends_within_a_block_of_its_product() -> None:
    """Rows of W1 stand for as many outputs as W2 has, so that 18 = 9 x 2 is cut at 6, 8 and 10, and 6 x 3 is not."""
    whole = lokr(9, 2)
    cuts = cut(whole, SLICES)
    assert torch.equal(torch.cat([delta(each) for each in cuts.values()]), delta(whole))
    assert_equal(join({SLICES[name]: adapter for name, adapter in cuts.items()}), whole)
    with raises_code("adapter.cannot_cut", "LoKr"):
        cut(lokr(6, 3), SLICES)
    with raises_code("adapter.cannot_join", "LoKr"):
        join({part: lokr(part.length // 2, 2) for part in SLICES.values()})


def test_differences_are_cut_and_joined_and_are_zero_where_there_are_none() -> None:
    parts = {"diff": torch.randn(18, 5), "diff_b": torch.randn(18)}
    whole = FullDifference(parts, {})
    cuts = cut(whole, SLICES)
    for name, part in SLICES.items():
        rows = slice(part.offset, part.offset + part.length)
        assert torch.equal(cuts[name].state_dict()["diff"], parts["diff"][rows])
        assert torch.equal(cuts[name].state_dict()["diff_b"], parts["diff_b"][rows])
    assert_equal(join({SLICES[name]: adapter for name, adapter in cuts.items()}), whole)
    lone = join({SLICES["layer3"]: cuts["layer3"]})
    assert not lone.state_dict()["diff"][:10].any() and torch.equal(
        lone.state_dict()["diff_b"][10:], parts["diff_b"][10:]
    )


def test_norms_are_swapped() -> None:
    own = NormDifference({"w_norm": torch.arange(8.0)}, {})
    assert cut(own, {"norm": swapped_halves("norm", 8)})["norm"].state_dict()["w_norm"].tolist() == [
        4,
        5,
        6,
        7,
        0,
        1,
        2,
        3,
    ]


def test_biases_are_cut_with_their_rows() -> None:
    bias = torch.randn(18)
    whole = BiasedAdapter(block_diagonal(), bias)
    cuts = cut(whole, SLICES)
    assert torch.equal(torch.cat([delta(each) for each in cuts.values()]), delta(whole))
    assert torch.equal(torch.cat([each.state_dict()["diff_b"] for each in cuts.values()]), bias)
    assert {each.hyperparameters["rank"] for each in cuts.values()} == {3}
    assert_equal(join({SLICES[name]: adapter for name, adapter in cuts.items()}), whole)


def block_diagonal() -> LoraFactors:
    return LoraFactors(torch.randn(12, 5), torch.block_diag(*[torch.randn(height, 3) for height in HEIGHTS]), 6.0)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(5, 4), nn.Linear(5, 2), nn.Linear(5, 2), nn.Linear(5, 6)


KEY_NAMES = {
    "kohya": {
        "unet.q": Slice("unet.native.qkv", 0, 4, 8),
        "unet.k": Slice("unet.native.qkv", 4, 2, 8),
        "unet.v": Slice("unet.native.qkv", 6, 2, 8),
        "unet.out": swapped_halves("unet.native.proj", 6),
    }
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[[dict[str, Tensor]], dict[str, LayerAdapter]]:
    """Write tensors and read them beside a base whose q, k and v are one layer in files."""

    def read(tensors: dict[str, Tensor]) -> dict[str, LayerAdapter]:
        save_file(tensors, tmp_path / "x.safetensors")
        return dict(load(tmp_path / "x.safetensors", {"unet": Attention()}, KEY_NAMES).weights)

    return read


def pair(name: str, own: LoraFactors) -> dict[str, Tensor]:
    return {f"{name}.lora_down.weight": own.down, f"{name}.lora_up.weight": own.up, f"{name}.alpha": torch.tensor(2.0)}


@pytest.mark.parametrize("name", ["lora_unet_native_qkv", "unet.native.qkv", "diffusion_model.native.qkv"])
def test_files_are_read_by_either_name(name: str, read: Callable[[dict[str, Tensor]], dict[str, LayerAdapter]]) -> None:
    own, out = lora(8, 3), lora(6, 2)
    weights = read({**pair(name, own), **pair("lora_unet_native_proj", out)})
    assert weights.keys() == {"unet.q", "unet.k", "unet.v", "unet.out"}
    parts = [delta(weights[f"unet.{part}"]) for part in "qkv"]
    assert torch.equal(torch.cat(parts), delta(own))
    assert torch.equal(delta(weights["unet.out"]).roll(3, 0), delta(out))


def test_a_layer_that_is_told_alone_and_as_a_slice_is_there_twice(
    read: Callable[[dict[str, Tensor]], dict[str, LayerAdapter]],
) -> None:
    with raises_code("weights.layer_twice"):
        read({**pair("lora_unet_native_qkv", lora(8, 3)), **pair("lora_unet_q", lora(4, 3))})


def test_what_is_written_for_kohya_s_readers_is_one_layer() -> None:
    base = BaseNames({"unet": Attention()}, KEY_NAMES)
    weights = {"unet.q": lora(4, 2), "unet.v": lora(2, 3, 3.0), "unet.out": lora(6, 2)}
    (file,) = KOHYA.write(weights, base)
    tensors = file.tensors
    assert {name: tuple(tensor.shape) for name, tensor in sorted(tensors.items())} == {
        "lora_unet_native_proj.alpha": (), "lora_unet_native_proj.lora_down.weight": (2, 5),
        "lora_unet_native_proj.lora_up.weight": (6, 2),
        "lora_unet_native_qkv.alpha": (), "lora_unet_native_qkv.lora_down.weight": (5, 5),
        "lora_unet_native_qkv.lora_up.weight": (8, 5),
    }  # fmt: skip
    expected = torch.cat([delta(weights["unet.q"]), torch.zeros(2, 5), delta(weights["unet.v"])])
    up, down = tensors["lora_unet_native_qkv.lora_up.weight"], tensors["lora_unet_native_qkv.lora_down.weight"]
    alpha = tensors["lora_unet_native_qkv.alpha"]
    torch.testing.assert_close(up.double() @ down.double() * (alpha.double() / 5), expected)


def test_layers_are_joined_under_the_names_that_files_have() -> None:
    own = {"unet.q": lora(4, 2), "unet.other": lora(3, 2)}
    assert list(join_layers(own, KEY_NAMES["kohya"])) == ["unet.other", "unet.native.qkv"]
    assert DORA.row_parts == {**LORA.row_parts, "magnitude": None} and json.dumps(LORA.row_parts)
