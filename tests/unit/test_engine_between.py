"""Cheap operations between layers: what is made of noted tensors by them is made again, not kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kept import kept_bytes
from tests.networks import NETWORKS, adapt
from veneer.engine import memory_levels, prepare
from veneer.engine.between import Between, works_between
from veneer.engine.recompute import Saving, is_noted, remember

ROWS, WIDTH = 32, 16
BYTES = 4 * ROWS * WIDTH


def norm(x: Tensor) -> Tensor:
    """As the prepared layer does it: its output is noted."""
    return remember(functional.layer_norm(x, (WIDTH,)), lambda x: functional.layer_norm(x, (WIDTH,)), x)


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
def test_results_are_made_again_with_the_same_bits(way: str) -> None:
    """The input alone is kept, with the scale; the gradient has the bits of plain autograd."""
    x, scale = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(WIDTH, requires_grad=True)
    weight = torch.randn(WIDTH, WIDTH, requires_grad=True)

    def loss(mode: AbstractContextManager[Any]) -> Tensor:
        y = norm(x * 1)
        with mode:
            y = ways()[way](y, scale)
        return (y @ weight.to(y.dtype)).square().sum()

    leaves = [x, weight]
    expected = torch.autograd.grad(loss(nullcontext()), leaves)
    with Saving(products=False):
        found = loss(Between())
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(found, leaves), expected, strict=True))

    def kept(mode: Callable[[], AbstractContextManager[Any]]) -> int:
        with Saving(products=False):
            return kept_bytes(lambda: loss(mode()))

    assert kept(Between) <= kept(nullcontext) - BYTES // 2


def noted(way: Callable[[Tensor], Tensor]) -> bool:
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with Saving(products=False), Between():
        return is_noted(way(norm(x * 1)))


def test_what_is_noted() -> None:
    assert noted(lambda y: y + 1) and noted(lambda y: (y + 1) * 2)
    half = torch.randn(ROWS // 2, WIDTH)
    assert noted(lambda y: torch.cat([y, y, half]))
    assert not noted(lambda y: y + torch.randn(ROWS, WIDTH)), "as much would be kept as it saves"
    assert not noted(lambda y: torch.randn(ROWS, WIDTH, requires_grad=True) * 2), "nobody knows how that was made"
    assert not noted(lambda y: y @ torch.randn(WIDTH, WIDTH)), "a product is not cheap"
    assert not noted(lambda y: y.add_(1)), "written to"
    assert not noted(lambda y: y.detach() + 1), "no gradient, nothing kept"


def test_a_view_needs_no_note_of_its_own() -> None:
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with Saving(products=False), Between():
        y = norm(x * 1)
        assert is_noted(y.reshape(2, -1)) and y.reshape(2, -1).untyped_storage() is y.untyped_storage()


def test_it_is_for_networks_without_convolutional_norms() -> None:
    found = {kind: works_between(network.make()) for kind, network in NETWORKS.items()}
    assert found == {kind: not kind.startswith("sd") or kind == "sd3" for kind in NETWORKS}


@pytest.mark.parametrize(("kind", "share"), [("sd3", 0.9), ("flux", 0.7)])
def test_transformers_keep_less_by_it(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS[kind]
    model = adapt(network)

    def kept() -> int:
        prepared = prepare(model, "lean")
        try:
            return kept_bytes(lambda: network.call(model, torch.float32).square().mean())
        finally:
            prepared.undo()

    found = kept()
    monkeypatch.setattr(memory_levels, "works_between", lambda model: False)
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
