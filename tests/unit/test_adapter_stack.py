"""Adapters stacked: added, weighed, swapped, removed; the base always comes back to its bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.adapters import adapter, equal, small_networks, weights
from tests.errors import raises_code
from veneer.adapter.lora import delta_weight
from veneer.adapter.stack import AdapterStack


@pytest.fixture
def networks() -> dict[str, nn.Module]:
    return small_networks()


def test_stack_swaps_weighs_and_removes(networks: dict[str, nn.Module]) -> None:
    before = weights(networks)
    one, two = adapter(1), adapter(2)

    def expected(a: float, b: float) -> Tensor:
        return before[1] + a * delta_weight(one["net.1"]) + b * delta_weight(two["net.1"])

    stack = AdapterStack(networks)
    stack.add("one", one)
    alone = weights(networks)
    torch.testing.assert_close(alone[1], expected(1, 0))
    stack.add("two", two, 0.5)
    torch.testing.assert_close(weights(networks)[1], expected(1, 0.5))
    stack.set_strengths({"one": 0.0, "two": 1.0})
    torch.testing.assert_close(weights(networks)[1], expected(0, 1))
    stack.set_strengths({"one": 1.0})
    torch.testing.assert_close(weights(networks)[1], expected(1, 1))
    assert stack.names == ("one", "two")
    stack.remove("two")
    assert equal(weights(networks), alone)
    stack.add("two", two)
    stack.clear()
    assert stack.names == ()
    assert equal(weights(networks), before)


def test_stack_does_not_drift(networks: dict[str, nn.Module]) -> None:
    networks["net"].to(torch.bfloat16)
    before = weights(networks)
    stack = AdapterStack(networks)
    stack.add("one", adapter(1))
    for weight in range(50):
        stack.set_strengths({"one": weight / 7})
    stack.set_strengths({"one": 0.0})
    assert equal(weights(networks), before)
    stack.clear()
    assert equal(weights(networks), before)


def test_stack_refuses_a_name_it_has_or_lacks(networks: dict[str, nn.Module]) -> None:
    stack = AdapterStack(networks)
    stack.add("one", adapter(1))
    before = weights(networks)
    for mistake, code, words in (
        (lambda: stack.add("one", adapter(2)), "adapter.name_taken", "an adapter 'one' is loaded already"),
        (lambda: stack.remove("two"), "adapter.unknown_name", "no adapter 'two' is loaded; loaded: one"),
        (lambda: stack.set_strengths({"one": 2.0, "two": 1.0}), "adapter.unknown_name", ""),
    ):
        with raises_code(code, words):
            mistake()
    assert equal(weights(networks), before)
