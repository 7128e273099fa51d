"""Leading singular values of full matrices, found alone or with all others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from veneer.adapter.lora import delta_weight
from veneer.adapter.svd import decompose_dense


def matrix(kind: str) -> Tensor:
    random = torch.Generator().manual_seed(0)
    if kind == "zero":
        return torch.zeros(90, 70)
    thin = torch.randn(90, 5, generator=random) @ torch.randn(5, 70, generator=random)
    return thin if kind == "thin" else thin + torch.randn(90, 70, generator=random)


@pytest.mark.parametrize("kind", ["thin", "noisy", "zero"])
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("turned", [False, True])
def test_those_found_alone_are_those_of_the_whole(kind: str, rank: int, turned: bool) -> None:
    delta = matrix(kind).T if turned else matrix(kind)
    alone, whole = decompose_dense(delta, rank), decompose_dense(delta)
    torch.testing.assert_close(alone.values[:rank], whole.values[:rank], rtol=1e-5, atol=1e-5)
    pair = [delta_weight(each.cut(rank, torch.float32)) for each in (alone, whole)]
    torch.testing.assert_close(pair[0], pair[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(decompose_dense(delta, rank).left, alone.left)


def test_a_rank_that_the_matrix_does_not_have_adds_zeros() -> None:
    thin = torch.ones(100, 1) @ torch.ones(1, 100)
    cut = decompose_dense(thin, 6).cut(6, torch.float32)
    torch.testing.assert_close(delta_weight(cut), thin, rtol=1e-5, atol=1e-5)
    assert all(torch.isfinite(factor).all() for factor in (cut.up, cut.down))


def test_a_convolution_keeps_its_kernel() -> None:
    delta = torch.randn(80, 20, 3, 3, generator=torch.Generator().manual_seed(1))
    cut = decompose_dense(delta, 2).cut(2, torch.float32)
    assert cut.down.shape == (2, 20, 3, 3) and cut.up.shape == (80, 2, 1, 1)
