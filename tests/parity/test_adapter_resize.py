"""Cutting an adapter's rank on its small factors, against the SVD of the full delta W."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.errors import raises_code
from veneer.adapter.biased import BiasedAdapter
from veneer.adapter.dora import DoraFactors
from veneer.adapter.full import FullDifference, NormDifference
from veneer.adapter.loha import LohaFactors
from veneer.adapter.lora import LoraFactors, delta_weight
from veneer.adapter.resize import Criterion, cut, resize


def factors(out: int, into: int, rank: int, *, alpha: float = 3.0, kernel: int = 0, seed: int = 0) -> LoraFactors:
    """Of a linear layer, or with a kernel of a convolution, float64; singular values fall so that each rank matters."""
    random = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, into * max(kernel, 1) ** 2, generator=random, dtype=torch.float64)
    up = torch.randn(out, rank, generator=random, dtype=torch.float64) * 0.6 ** torch.arange(rank)
    if kernel:
        return LoraFactors(down.reshape(rank, into, kernel, kernel), up[..., None, None], alpha)
    return LoraFactors(down, up, alpha)


def norm(adapter: Mapping[str, LoraFactors]) -> float:
    """Of all delta W together."""
    return math.sqrt(sum(float(delta_weight(each).square().sum()) for each in adapter.values()))


def truncated(matrix: Tensor, rank: int) -> Tensor:
    """The nearest matrix of a rank (Eckart and Young 1936), by the SVD of the whole."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] * values[:rank] @ right[:rank]


@pytest.mark.parametrize("kernel", [0, 3])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_it_is_the_truncated_svd_of_the_full_matrix(rank: int, kernel: int) -> None:
    given = factors(24, 16, 8, kernel=kernel)
    (cut,) = resize({"layer": given}, rank).values()
    full, near = delta_weight(given), delta_weight(cut)
    torch.testing.assert_close(near.flatten(1), truncated(full.flatten(1), rank), rtol=1e-10, atol=1e-12)
    assert cut.shape == given.shape and cut.rank == cut.alpha == rank


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(2, 12), st.integers(1, 11), st.floats(-4, 4), st.integers(0, 9)
)
def test_no_rank_larger_than_its_matrix_is_a_trap(
    out: int, into: int, rank: int, lower: int, alpha: float, seed: int
) -> None:
    """Also where r exceeds both sides of the matrix, where alpha is negative, and where it is zero."""
    given_ = factors(out, into, rank, alpha=alpha, seed=seed)
    if lower >= rank:
        with raises_code("adapter.rank_not_lower", "not more than"):
            resize({"layer": given_}, lower)
        return
    (cut,) = resize({"layer": given_}, lower).values()
    full = delta_weight(given_)
    torch.testing.assert_close(delta_weight(cut), truncated(full, lower), rtol=1e-8, atol=1e-9)
    assert cut.rank == min(lower, out, into)


def test_float32_and_float16_are_cut_to_their_own_precision() -> None:
    exact = factors(32, 32, 8)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 4e-3)):
        given = exact.to("cpu", dtype)
        (cut,) = resize({"layer": given}, 4).values()
        assert cut.down.dtype == cut.up.dtype == dtype
        expected = truncated(delta_weight(given.to("cpu", torch.float64)), 4)
        found = delta_weight(cut.to("cpu", torch.float64))
        assert float((found - expected).norm() / expected.norm()) < tolerance


def test_what_is_kept_is_the_norm_that_is_kept() -> None:
    adapter = {"a": factors(24, 16, 8), "b": factors(8, 40, 5, kernel=3, seed=1)}
    for rank in (1, 4, 7):
        done = cut(adapter, rank)
        assert done.retained == pytest.approx(norm(done.weights) / norm(adapter), rel=1e-12)
    assert cut(adapter, 8).retained == 1
    assert cut({"a": LoraFactors(torch.ones(2, 3), torch.zeros(4, 2), 1.0)}, 1).retained == 1


def test_layers_of_a_low_rank_are_left_as_they_are() -> None:
    adapter = {"high": factors(24, 16, 8), "low": factors(24, 16, 2)}
    cut = resize(adapter, 4)
    assert cut["low"] is adapter["low"] and cut["high"].rank == 4
    with raises_code("adapter.bad_rank", "rank is 0"):
        resize(adapter, 0)


def test_nothing_as_large_as_the_layer_is_made() -> None:
    """A layer of 200,000 x 100,000 would take 160 GB as a matrix; its factors take a few megabytes."""
    big = LoraFactors(torch.ones(2, 100_000), torch.ones(200_000, 2), 2.0)
    (cut,) = resize({"layer": big}, 1).values()
    assert float((cut.up[0] * cut.down[0, 0]).sum()) == pytest.approx(2.0, rel=1e-5)


def dense_values(adapter: LoraFactors) -> Tensor:
    """The singular values of the full delta W."""
    return torch.linalg.svdvals(delta_weight(adapter).flatten(1))


CLOSED = {
    "energy": lambda values, rank: float(values[:rank].square().sum() / values.square().sum()),
    "frobenius": lambda values, rank: -float((values[rank:].square().sum() / values.square().sum()).sqrt()),
    "sv_fro": lambda values, rank: float(values[:rank].norm() / values.norm()),
    "sv_cumulative": lambda values, rank: float(values[:rank].sum() / values.sum()),
}
"""What a rank keeps, larger for more, on the singular values of the full matrix."""


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("kernel", [0, 3])
@given(share=st.floats(0.05, 0.999), seed=st.integers(0, 99))
def test_the_rank_is_the_lowest_that_keeps_enough(name: str, kernel: int, share: float, seed: int) -> None:
    given_ = factors(24, 16, 8, kernel=kernel, seed=seed)
    (layer,) = cut({"layer": given_}, criterion=Criterion(name, share)).weights.values()
    values, rank = dense_values(given_), int(layer.hyperparameters["rank"])
    wanted = -share if name == "frobenius" else share
    assert CLOSED[name](values, rank) >= wanted - 1e-9
    assert rank == 1 or CLOSED[name](values, rank - 1) < wanted + 1e-9


@given(error=st.floats(1e-6, 0.9), seed=st.integers(0, 99))
def test_the_error_is_within_what_was_asked(error: float, seed: int) -> None:
    given_ = factors(24, 16, 8, seed=seed)
    (layer,) = cut({"layer": given_}, criterion=Criterion("frobenius", error)).weights.values()
    assert isinstance(layer, LoraFactors)
    full = delta_weight(given_)
    assert float((delta_weight(layer) - full).norm() / full.norm()) <= error + 1e-9


@given(ratio=st.floats(1, 1e4), seed=st.integers(0, 99))
def test_the_ratio_is_kohyas_less_its_extra_one(ratio: float, seed: int) -> None:
    """sd-scripts counts ``S > S[0] / ratio`` and adds one twice, where once would be the rank."""
    given_ = factors(24, 16, 8, seed=seed)
    (layer,) = cut({"layer": given_}, criterion=Criterion("sv_ratio", ratio)).weights.values()
    values = dense_values(given_)
    expected = max(1, int((values > values[0] / ratio).sum()))
    assert layer.hyperparameters["rank"] == min(8, expected)


def test_criteria_that_mean_the_same_cut_the_same() -> None:
    adapter = {f"layer{seed}": factors(24, 16, 8, seed=seed) for seed in range(9)}

    def ranks(name: str, number: float) -> list[int]:
        return [layer.after for layer in cut(adapter, criterion=Criterion(name, number)).layers.values()]

    assert ranks("energy", 0.9) == ranks("sv_fro", 0.9**0.5) == ranks("frobenius", 0.1**0.5)
    assert len(set(ranks("energy", 0.9))) > 1


def test_each_layer_has_a_rank_of_its_own_and_a_limit() -> None:
    adapter = {"steep": factors(24, 16, 8), "flat": factors(24, 16, 8)}
    adapter["flat"] = LoraFactors(torch.eye(8, 16), torch.eye(24, 8), 8.0)
    done = cut(adapter, criterion=Criterion("energy", 0.9))
    assert done.layers["steep"].after < done.layers["flat"].after == 8
    assert done.weights["flat"] is adapter["flat"] and done.is_smaller
    limited = cut(adapter, 3, Criterion("energy", 0.9)).layers
    assert limited["flat"].after == 3 and limited["steep"].after == min(3, done.layers["steep"].after)
    assert limited["flat"].squared_norm_left == pytest.approx(3 / 8 * limited["flat"].squared_norm)


def test_a_layer_of_zeros_is_cut_to_rank_one() -> None:
    zero = {"a": LoraFactors(torch.ones(4, 6), torch.zeros(5, 4), 4.0)}
    for name, number in (("energy", 0.9), ("frobenius", 0.1), ("sv_ratio", 10.0), ("sv_cumulative", 0.5)):
        assert cut(zero, criterion=Criterion(name, number)).layers["a"].after == 1


@pytest.mark.parametrize(
    ("name", "number"), [("energy", 0.0), ("energy", 1.1), ("sv_ratio", 0.5), ("sv_fro", float("nan")), ("sv", 0.5)]
)
def test_numbers_without_a_meaning_are_refused(name: str, number: float) -> None:
    with raises_code("adapter.bad_criterion"):
        Criterion(name, number)


def test_biases_norms_and_full_differences_stay_as_they_are() -> None:
    given_ = factors(24, 16, 8).to("cpu", torch.float32)
    bias = torch.randn(24)
    kept = {
        "norm": NormDifference({"w_norm": torch.ones(4)}, {}),
        "full": FullDifference({"diff": torch.ones(4, 3)}, {}),
        "bias": FullDifference({"diff_b": torch.ones(4)}, {}),
    }
    done = cut({"layer": BiasedAdapter(given_, bias), **kept}, 2)
    assert set(done.layers) == {"layer"} and done.layers["layer"].after == 2
    assert all(done.weights[name] is layer for name, layer in kept.items()) and list(done.weights) == ["layer", *kept]
    layer = done.weights["layer"]
    assert isinstance(layer, BiasedAdapter) and layer.bias is bias
    torch.testing.assert_close(layer.delta_weight(bias), truncated(delta_weight(given_), 2), rtol=1e-4, atol=1e-5)
    with raises_code("adapter.cannot_resize"):
        cut(kept, 2)


def test_methods_without_a_rank_are_told_the_way_out() -> None:
    loha = {
        f"hada_w{half}_{side}": torch.ones(*shape) for half in "12" for side, shape in (("a", (4, 2)), ("b", (2, 3)))
    }
    with raises_code("adapter.cannot_resize", "a LoHa adapter", match="veneer adapter blend FILE --rank N"):
        cut({"x": LohaFactors(loha, {"alpha": 1.0})}, 1)
    with raises_code("adapter.cannot_resize", match="train it anew"):
        cut({"x": DoraFactors(factors(4, 3, 2), torch.ones(4, 1))}, 1)
