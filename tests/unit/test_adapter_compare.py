"""The measures of two adapters, against closed forms and against the full matrices."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.errors import raises_code
from veneer.adapter.biased import BiasedAdapter
from veneer.adapter.compare import (
    SIDES,
    Update,
    amplification,
    compare_layer,
    cosine,
    drift,
    mean_grid,
    subspace_similarity,
    update_of,
)
from veneer.adapter.dora import DoraFactors
from veneer.adapter.full import FullDifference, NormDifference
from veneer.adapter.lora import LoraFactors, delta_weight


def factors(seed: int, rank: int, out: int = 20, into: int = 12, kernel: int = 0, alpha: float = 3.0) -> LoraFactors:
    random = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, into * max(kernel, 1) ** 2, generator=random, dtype=torch.float64)
    up = torch.randn(out, rank, generator=random, dtype=torch.float64) * 0.6 ** torch.arange(rank)
    if kernel:
        return LoraFactors(down.reshape(rank, into, kernel, kernel), up[..., None, None], alpha)
    return LoraFactors(down, up, alpha)


def update(seed: int, rank: int, kernel: int = 0, alpha: float = 3.0) -> Update:
    found = update_of("layer", factors(seed, rank, kernel=kernel, alpha=alpha))
    assert found is not None
    return found


def dense(seed: int, rank: int, kernel: int = 0, alpha: float = 3.0) -> Tensor:
    return delta_weight(factors(seed, rank, kernel=kernel, alpha=alpha)).flatten(1)


def paper(one: Tensor, other: Tensor, i: int, j: int) -> float:
    """Equation 4, word for word, of matrices whose right singular vectors are compared."""
    u_a, u_b = (torch.linalg.svd(matrix, full_matrices=False)[2].T for matrix in (one, other))
    return float((u_a[:, :i].T @ u_b[:, :j]).norm() ** 2 / min(i, j))


@pytest.mark.parametrize("kernel", [0, 3])
def test_phi_is_equation_4(kernel: int) -> None:
    one, other = factors(1, 4, kernel=kernel), factors(2, 6, kernel=kernel)
    found = compare_layer(update_of("x", one), update_of("x", other)).subspaces
    sources = {
        "A": [each.down.flatten(1) for each in (one, other)],
        "input": [delta_weight(each).flatten(1) for each in (one, other)],
        "output": [delta_weight(each).flatten(1).T for each in (one, other)],
    }
    assert set(found) == set(SIDES) == set(sources)
    for side, (a, b) in sources.items():
        assert found[side].grid.shape == (4, 6)
        for i in range(1, 5):
            for j in range(1, 7):
                assert float(found[side].grid[i - 1, j - 1]) == pytest.approx(paper(a, b, i, j), abs=1e-10)
        assert found[side].phi == float(found[side].grid[3, 3])


@pytest.mark.parametrize("kernel", [0, 3])
def test_an_adapter_with_itself_is_one(kernel: int) -> None:
    layer = compare_layer(update(1, 4, kernel), update(1, 4, kernel))
    for each in layer.subspaces.values():
        assert torch.allclose(each.grid.diagonal(), torch.ones(4, dtype=torch.float64), atol=1e-12)
        assert each.phi == pytest.approx(1, abs=1e-12)
    assert cosine([layer]) == pytest.approx(1, abs=1e-12) and drift([layer]) < 1e-12


def test_strength_changes_no_direction() -> None:
    layer = compare_layer(update(1, 4), update(1, 4, alpha=-1.5))
    assert all(each.phi == pytest.approx(1, abs=1e-12) for each in layer.subspaces.values())
    assert cosine([layer]) == pytest.approx(-1, abs=1e-12) and drift([layer]) == pytest.approx(1.5)


def test_orthogonal_adapters_are_zero() -> None:
    axes = torch.eye(12)
    one, other = (LoraFactors(axes[a : a + 3], torch.eye(20)[:, a : a + 3], 3.0) for a in (0, 5))
    layer = compare_layer(update_of("x", one), update_of("x", other))
    assert all(not each.grid.any() for each in layer.subspaces.values())
    assert cosine([layer]) == 0 and drift([layer]) == pytest.approx(math.sqrt(2))


def test_random_directions_are_as_alike_as_chance_has_it() -> None:
    """The mean of |U^T V|^2 of random subspaces of i and j dimensions in d is i j / d."""
    random = torch.Generator().manual_seed(0)
    d, i, j = 24, 3, 6
    grids = []
    for _ in range(4000):
        one, other = (torch.linalg.qr(torch.randn(d, r, generator=random))[0].T for r in (i, j))
        grids.append(subspace_similarity(one, other))
    mean = torch.stack(grids).mean(0)
    for a in range(1, i + 1):
        for b in range(1, j + 1):
            assert float(mean[a - 1, b - 1]) == pytest.approx(a * b / (d * min(a, b)), rel=0.1)
    layer = compare_layer(update(1, 3), update(2, 6)).subspaces["A"]
    assert layer.by_chance == 3 / 12


@given(st.integers(0, 50), st.integers(1, 6), st.integers(1, 6), st.sampled_from([0, 3]), st.floats(0.1, 4))
def test_cosine_and_drift_are_those_of_the_full_matrices(
    seed: int, rank_a: int, rank_b: int, kernel: int, alpha: float
) -> None:
    layers, ones, others = [], [], []
    for place in range(2):
        layers.append(compare_layer(update(seed + place, rank_a, kernel), update(seed + 7, rank_b, kernel, alpha)))
        ones.append(dense(seed + place, rank_a, kernel).flatten())
        others.append(dense(seed + 7, rank_b, kernel, alpha).flatten())
    a, b = torch.cat(ones), torch.cat(others)
    assert cosine(layers) == pytest.approx(float(torch.dot(a, b) / (a.norm() * b.norm())), abs=1e-10)
    assert drift(layers) == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-9)


def test_a_small_drift_keeps_its_digits() -> None:
    """The norms less twice the inner product would lose it in rounding: 1e-16 of a norm of 1 is 1e-8 as a root."""
    one = factors(1, 4)
    other = LoraFactors(one.down, one.up * (1 + 1e-11), one.alpha)
    layer = compare_layer(update_of("x", one), update_of("x", other))
    assert drift([layer]) == pytest.approx(1e-11, rel=1e-3)


def test_a_layer_that_one_lacks_counts_as_zero() -> None:
    both, only = compare_layer(update(1, 4), update(1, 4)), compare_layer(update(2, 4), None)
    assert only.ranks == (4, 0) and not only.subspaces and drift([only]) == pytest.approx(1)
    a, b = dense(1, 4).norm() ** 2, dense(2, 4).norm() ** 2
    assert cosine([both, only]) == pytest.approx(float((a / (a + b)).sqrt()))
    assert math.isnan(cosine([only])) and math.isnan(drift([compare_layer(None, update(2, 4))]))


def test_an_untrained_adapter_has_no_directions() -> None:
    zero = update_of("x", LoraFactors(torch.ones(2, 12), torch.zeros(20, 2), 2.0))
    assert zero.rank == 0
    layer = compare_layer(zero, update(1, 4), torch.ones(20, 12))
    assert set(layer.subspaces) == {"A"} and layer.amplifications[0] is None
    assert layer.amplifications[1] is not None


@pytest.mark.parametrize("kernel", [0, 3])
def test_amplification_is_table_7(kernel: int) -> None:
    weight = torch.randn(20, 12, *[kernel] * (2 if kernel else 0), generator=torch.Generator().manual_seed(3)).double()
    matrix, delta = weight.flatten(1), dense(1, 4, kernel)
    left, _, right = torch.linalg.svd(delta, full_matrices=False)
    within = float((left[:, :4].T @ matrix @ right[:4].T).norm())
    found = amplification(update(1, 4, kernel), weight)
    assert found is not None and found.rank == 4
    assert found.within == pytest.approx(within) and found.delta_norm == pytest.approx(float(delta.norm()))
    assert found.factor == pytest.approx(float(delta.norm()) / within)
    random = torch.Generator().manual_seed(4)
    squares = []
    for _ in range(400):
        u, v = (torch.linalg.qr(torch.randn(n, 4, generator=random, dtype=torch.float64))[0] for n in matrix.shape)
        squares.append(float((u.T @ matrix @ v).square().sum()))
    assert found.within_random == pytest.approx(math.sqrt(sum(squares) / len(squares)), rel=0.1)
    assert found.alignment == pytest.approx(within / found.within_random)


def test_an_adapter_along_the_weight_amplifies_what_is_there() -> None:
    """delta W = 0.5 W of rank 2: all of W lies within, and it is made half as large again."""
    weight = delta_weight(factors(1, 2))
    found = amplification(update(1, 2, alpha=1.5), weight)
    assert found is not None and found.factor == pytest.approx(0.5)
    assert found.within == pytest.approx(found.weight_norm)


def test_a_dora_takes_the_base() -> None:
    dora = DoraFactors(factors(1, 4).to("cpu", torch.float32), torch.ones(20, 1))
    with raises_code("adapter.needs_base", "x has a DoRA adapter"):
        update_of("x", dora)
    weight = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    found = update_of("x", dora, weight)
    torch.testing.assert_close(
        (found.whole.left * found.whole.values) @ found.whole.right, dora.delta_weight(weight), rtol=1e-4, atol=1e-5
    )
    with raises_code("adapter.other_architecture"):
        update_of("x", dora, torch.ones(20, 13))


def test_the_mean_grid_is_over_the_layers_that_have_a_place() -> None:
    small = compare_layer(update(1, 2), update(2, 2)).subspaces["A"]
    large = compare_layer(update(3, 4), update(4, 3)).subspaces["A"]
    mean = mean_grid([small, large])
    assert mean.shape == (4, 3)
    torch.testing.assert_close(mean[:2, :2], (small.grid + large.grid[:2, :2]) / 2)
    torch.testing.assert_close(mean[2:], large.grid[2:])


def test_a_trained_bias_is_no_part_of_delta_w() -> None:
    plain, biased = factors(1, 4), BiasedAdapter(factors(1, 4), torch.ones(20))
    layer = compare_layer(update_of("x", plain), update_of("x", biased))
    assert cosine([layer]) == pytest.approx(1) and "A" in layer.subspaces
    assert update_of("x", FullDifference({"diff_b": torch.ones(20)}, {})) is None


def test_full_differences_and_norms_are_compared() -> None:
    full = FullDifference({"diff": delta_weight(factors(1, 4)).float()}, {})
    layer = compare_layer(update_of("x", factors(1, 4)), update_of("x", full))
    assert cosine([layer]) == pytest.approx(1, abs=1e-6) and set(layer.subspaces) == {"input", "output"}
    norms = [NormDifference({"w_norm": torch.tensor(values)}, {}) for values in ([1.0, 0.0], [1.0, 1.0])]
    layer = compare_layer(*(update_of("x", norm) for norm in norms), torch.ones(2))
    assert cosine([layer]) == pytest.approx(math.sqrt(0.5)) and layer.ranks == (1, 1)
