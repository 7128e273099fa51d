"""The LoRA nearest to a change: against the whole decomposition, and against a change that is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from veneer.adapter import extract as module
from veneer.adapter.extract import decompose_largest, extract
from veneer.adapter.lora import delta_weight
from veneer.adapter.resize import Criterion
from veneer.adapter.svd import decompose_dense


def low_rank(rank: int, *shape: int, seed: int = 0) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    inputs = torch.Size(shape[1:]).numel()
    up, down = torch.randn(shape[0], rank, generator=numbers), torch.randn(rank, inputs, generator=numbers)
    return (up @ down).reshape(shape)


@pytest.mark.parametrize("shape", [(24, 16), (12, 40), (20, 6, 3, 3), (8, 16, 1, 1)])
def test_a_change_of_low_rank_comes_back(shape: tuple[int, ...]) -> None:
    delta = low_rank(4, *shape)
    found = extract(delta, 4)
    assert found.factors.rank == 4 and found.factors.alpha == 4 and found.factors.shape == shape
    torch.testing.assert_close(delta_weight(found.factors), delta, rtol=1e-4, atol=1e-4)
    assert found.squared_norm == pytest.approx(float(delta.double().square().sum()), rel=1e-6)
    assert found.squared_error < 1e-9 * found.squared_norm


@pytest.mark.parametrize("rank", [1, 3, 7, 100])
def test_no_lora_of_its_rank_is_nearer(rank: int) -> None:
    """Eckart and Young: the error is the tail of the squared singular values, by numpy's own decomposition."""
    delta = torch.randn(20, 6, 3, 3)
    values = torch.linalg.svdvals(delta.flatten(1).double())
    found = extract(delta, rank)
    assert found.factors.rank == min(rank, 20)
    assert found.squared_error == pytest.approx(float(values[rank:].square().sum()), abs=1e-6 * found.squared_norm)


def test_the_share_of_energy_decides_and_the_rank_limits() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 0.5])
    delta = torch.linalg.qr(torch.randn(9, 4)).Q * values @ torch.linalg.qr(torch.randn(7, 4)).Q.T
    energies = (values.square().cumsum(0) / values.square().sum()).tolist()
    for place, energy in enumerate(energies[:3], start=1):
        assert extract(delta, None, Criterion("energy", energy - 1e-4)).factors.rank == place
        assert extract(delta, 2, Criterion("energy", energy - 1e-4)).factors.rank == min(2, place)
    found = extract(delta, 2)
    assert found.squared_norm_left / found.squared_norm == pytest.approx(energies[1], rel=1e-5)


@pytest.mark.parametrize("noise, most", [(0.0, 1e-6), (0.5, 1e-3), (None, 1e-3)])
def test_what_is_drawn_keeps_nearly_as_much(noise: float | None, most: float) -> None:
    """Of a change without noise, with as much noise as signal, and of noise alone."""
    delta = torch.randn(640, 700) if noise is None else 0.1 * low_rank(40, 640, 700) + noise * torch.randn(640, 700)
    whole = decompose_dense(delta).values[:32]
    found = decompose_largest(delta, 32, "layer")
    assert 0 <= 1 - float(found.values.norm() / whole.norm()) + 1e-6 < most + 1e-6
    torch.testing.assert_close(found.left.T @ found.left, torch.eye(32), atol=1e-4, rtol=0)
    again, other = decompose_largest(delta, 32, "layer"), decompose_largest(delta, 32, "other")
    assert torch.equal(found.left, again.left) and not torch.equal(found.left, other.left)


def test_only_large_layers_are_drawn_and_their_error_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "decompose_largest", lambda *given: asked.append(given[2]) or decompose_largest(*given))
    delta = torch.randn(200, 240)
    extract(delta, 4, key="small")
    monkeypatch.setattr(module, "_LARGE", 200)
    extract(delta, 30, key="many")
    extract(delta, 4, Criterion("energy", 0.5), key="energy")
    found = extract(delta, 4, key="large")
    assert asked == ["large"]
    error = float((delta - delta_weight(found.factors)).double().square().sum())
    assert found.squared_error == pytest.approx(error, rel=1e-6)
