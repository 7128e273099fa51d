"""Cheap operations between layers: their results on recomputable tensors are recomputed, not saved."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.saved_tensors import saved_tensor_bytes
from tests.networks import NETWORKS, adapt
from veneer.engine import memory_levels, prepare
from veneer.engine.elementwise import ElementwiseRecompute, has_elementwise_work
from veneer.engine.recompute import RecomputeContext, is_recomputable, make_recomputable

ROWS, WIDTH = 32, 16
BYTES = 4 * ROWS * WIDTH


def norm(x: Tensor) -> Tensor:
    """As the prepared layer computes it: its output is recomputable."""
    return make_recomputable(functional.layer_norm(x, (WIDTH,)), lambda x: functional.layer_norm(x, (WIDTH,)), x)


def ways() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """What networks do between a norm and the layer after it; ``s`` is a scale for each column."""
    return {
        "scale and shift": lambda y, s: y * (1 + s) + s,
        "shift first": lambda y, s: s + 2.0 * y,
        "by a method": lambda y, s: y.mul(s).add(s, alpha=0.5),
        "a gate": lambda y, s: functional.silu(y),
        "joined, by name": lambda y, s: torch.cat(tensors=[y, y.neg()], dim=0),
        "other precision": lambda y, s: y.to(torch.float64),
        "turned": lambda y, s: torch.stack([-y[:, 1::2], y[:, ::2]], -1).flatten(1) * s,
    }


@pytest.mark.parametrize("way", ways())
def test_results_are_recomputed_with_the_same_bits(way: str) -> None:
    """The input alone is saved, with the scale; the gradient has the bits of plain autograd."""
    x, scale = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(WIDTH, requires_grad=True)
    weight = torch.randn(WIDTH, WIDTH, requires_grad=True)

    def loss(mode: AbstractContextManager[Any]) -> Tensor:
        y = norm(x * 1)
        with mode:
            y = ways()[way](y, scale)
        return (y @ weight.to(y.dtype)).square().sum()

    leaves = [x, weight]
    expected = torch.autograd.grad(loss(nullcontext()), leaves)
    with RecomputeContext(products=False):
        found = loss(ElementwiseRecompute())
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(found, leaves), expected, strict=True))

    def kept(mode: Callable[[], AbstractContextManager[Any]]) -> int:
        with RecomputeContext(products=False):
            return saved_tensor_bytes(lambda: loss(mode()))

    assert kept(ElementwiseRecompute) <= kept(nullcontext) - BYTES // 2


def recomputable(way: Callable[[Tensor], Tensor]) -> bool:
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with RecomputeContext(products=False), ElementwiseRecompute():
        return is_recomputable(way(norm(x * 1)))


def test_what_is_recomputable() -> None:
    assert recomputable(lambda y: y + 1) and recomputable(lambda y: (y + 1) * 2)
    half = torch.randn(ROWS // 2, WIDTH)
    assert recomputable(lambda y: torch.cat([y, y, half]))
    assert not recomputable(lambda y: y + torch.randn(ROWS, WIDTH)), "as much would be saved as without it"
    assert not recomputable(lambda y: torch.randn(ROWS, WIDTH, requires_grad=True) * 2), "it has no recipe"
    assert not recomputable(lambda y: y @ torch.randn(WIDTH, WIDTH)), "a product is not cheap"
    assert not recomputable(lambda y: y.add_(1)), "written to"
    assert not recomputable(lambda y: y.detach() + 1), "no gradient, nothing saved"


def test_a_view_needs_no_recipe_of_its_own() -> None:
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with RecomputeContext(products=False), ElementwiseRecompute():
        y = norm(x * 1)
        assert is_recomputable(y.reshape(2, -1)) and y.reshape(2, -1).untyped_storage() is y.untyped_storage()


def test_it_is_for_networks_without_convolutional_norms() -> None:
    found = {kind: has_elementwise_work(network.make()) for kind, network in NETWORKS.items()}
    assert found == {kind: not kind.startswith("sd") or kind == "sd3" for kind in NETWORKS}


@pytest.mark.parametrize(("kind", "share"), [("sd3", 0.9), ("flux", 0.7)])
def test_transformers_save_less_by_it(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS[kind]
    model = adapt(network)

    def kept() -> int:
        prepared = prepare(model, "lean")
        try:
            return saved_tensor_bytes(lambda: network.call(model, torch.float32).square().mean())
        finally:
            prepared.undo()

    found = kept()
    monkeypatch.setattr(memory_levels, "has_elementwise_work", lambda model: False)
    assert found < share * kept()


def test_only_a_prepared_network_s_own_calls_are_watched() -> None:
    network = NETWORKS["sd3"]
    model: nn.Module = adapt(network)
    prepare(model, "lean")
    network.call(model, torch.float32)
    assert torch.overrides._get_current_function_mode() is None
    with pytest.raises((TypeError, RuntimeError, ValueError, AttributeError)):
        model(torch.randn(1))
    assert torch.overrides._get_current_function_mode() is None
