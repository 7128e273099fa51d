"""Adapters combined and merged; the base always comes back to its bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.adapters import adapter, equal, small_networks, weights
from tests.errors import raises_code
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraFactors, LoraSpec, delta_weight
from veneer.adapter.merge import combine, merge
from veneer.adapter.protocol import AdapterWeights
from veneer.adapter.stack import AdapterStack


@pytest.fixture
def networks() -> dict[str, nn.Module]:
    return small_networks()


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.floats(-2, 2), st.floats(0.5, 8), st.sampled_from([("net.0",), ("net.1",)])),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=40, deadline=None)
def test_combine_is_the_weighted_sum(parts: list[tuple[int, float, float, tuple[str, ...]]]) -> None:
    adapters = [(adapter(i, rank, alpha, names), weight) for i, (rank, weight, alpha, names) in enumerate(parts)]
    whole = combine(adapters)
    assert set(whole) == {name for factors, _ in adapters for name in factors}
    for name, each in whole.items():
        terms = [(factors[name], weight) for factors, weight in adapters if name in factors]
        assert (each.rank, each.scale) == (sum(term.rank for term, _ in terms), 1.0)
        expected = torch.stack([weight * delta_weight(term) for term, weight in terms]).sum(0)
        torch.testing.assert_close(delta_weight(each), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_combine_does_not_round_what_is_in_half_precision(dtype: torch.dtype) -> None:
    part = {name: factors.to("cpu", dtype) for name, factors in adapter(0).items()}
    whole = combine([(part, 0.7), (adapter(1), 0.3)])
    for name, factors in whole.items():
        wide = [delta_weight(each.to("cpu", torch.float64)) for each in (part[name], adapter(1)[name])]
        exact = 0.7 * wide[0] + 0.3 * wide[1]
        gap = delta_weight(factors.to("cpu", torch.float64)) - exact
        assert factors.down.dtype == factors.up.dtype == torch.float32
        assert float(gap.norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize("weight", ["0.5", None, float("nan"), float("inf")])
def test_a_strength_that_is_no_finite_number_is_refused(networks: dict[str, nn.Module], weight: Any) -> None:
    before = weights(networks)
    stack = AdapterStack(networks)
    stack.add("a", adapter(0))
    added = weights(networks)
    for act in (
        lambda: stack.add("b", adapter(1), weight),
        lambda: stack.set_strengths({"a": weight}),
        lambda: merge(networks, [(adapter(1), weight)]),
        lambda: combine([(adapter(0), 1.0), (adapter(1), weight)]),
    ):
        with raises_code("adapter.bad_strength", "the strength of adapter "):
            act()
        assert equal(weights(networks), added) and stack.names == ("a",)
    stack.clear()
    assert equal(weights(networks), before)


def test_combine_refuses_different_architectures() -> None:
    other = {"net.1": LoraFactors(torch.ones(2, 5), torch.ones(4, 2), 1.0)}
    with raises_code("adapter.different_architectures", "the adapters are of different architectures: net.1 is (4, "):
        combine([(adapter(0), 1.0), (other, 1.0)])


def test_merge_adds_and_undo_restores_the_bits(networks: dict[str, nn.Module]) -> None:
    before, objects = weights(networks), list(networks["net"].parameters())
    one, two = adapter(1), adapter(2, rank=4, names=("net.1",))
    merged = merge(networks, [(one, 0.5), (two, -2.0)])
    after = weights(networks)
    torch.testing.assert_close(after[0], before[0] + 0.5 * delta_weight(one["net.0"]))
    total = before[1] + 0.5 * delta_weight(one["net.1"]) - 2.0 * delta_weight(two["net.1"])
    torch.testing.assert_close(after[1], total)
    merged.undo()
    merged.undo()
    assert equal(weights(networks), before)
    assert all(a is b for a, b in zip(networks["net"].parameters(), objects, strict=True))


def test_merge_rounds_once(networks: dict[str, nn.Module]) -> None:
    networks["net"].to(torch.bfloat16)
    before = weights(networks)[1]
    parts = [(adapter(seed, names=("net.1",)), 0.01) for seed in range(30)]
    merge(networks, parts)
    exact = before.double() + sum(0.01 * delta_weight(f["net.1"]).double() for f, _ in parts)
    assert torch.equal(weights(networks)[1], exact.bfloat16())


def test_undo_follows_a_network_that_was_cast(networks: dict[str, nn.Module]) -> None:
    before = weights(networks)
    merged = merge(networks, [(adapter(1), 1.0)])
    networks["net"].to(torch.bfloat16)
    merged.undo()
    assert equal(weights(networks), [weight.bfloat16() for weight in before])


def test_undo_refuses_the_wrong_order(networks: dict[str, nn.Module]) -> None:
    before = weights(networks)
    first = merge(networks, [(adapter(1), 1.0)])
    second = merge(networks, [(adapter(2), 1.0)])
    with raises_code("adapter.merged_over", "other adapters were merged after these; undo those first"):
        first.undo()
    second.undo()
    first.undo()
    assert equal(weights(networks), before)


def test_merge_keeps_flags_and_needs_no_gradient(networks: dict[str, nn.Module]) -> None:
    networks["net"][0].weight.requires_grad_(False)
    merge(networks, [(adapter(1), 1.0)])
    assert [parameter.requires_grad for parameter in networks["net"].parameters()] == [False, True, True, True]
    assert networks["net"][1].weight.is_leaf


def test_merges_under_an_adapter_in_training(networks: dict[str, nn.Module]) -> None:
    injection = inject(networks, {"net": LoraSpec(2, 2.0, ("1",))}, 0)
    x = torch.ones(1, 4)
    before = networks["net"][1](x)
    merged = merge(networks, [(adapter(1), 1.0)])
    torch.testing.assert_close(networks["net"][1](x), before + x @ delta_weight(adapter(1)["net.1"]).T)
    merged.undo()
    injection.eject()
    assert torch.equal(networks["net"][1](x), before)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"net.1": LoraFactors(torch.ones(2, 5), torch.ones(4, 2), 1.0)}, "net.1 is (4, 5) in it and (4, 4)"),
        ({"net.7": LoraFactors(torch.ones(2, 5), torch.ones(4, 2), 1.0)}, "changes net.7 (4, 5), which the base"),
        ({"other.1": LoraFactors(torch.ones(2, 5), torch.ones(4, 2), 1.0)}, "changes other.1"),
    ],
)
@pytest.mark.parametrize("use", [lambda n, a: merge(n, a), lambda n, a: AdapterStack(n).add("x", a[-1][0])])
def test_refuses_another_architecture(
    networks: dict[str, nn.Module], wrong: AdapterWeights, reason: str, use: Callable[..., object]
) -> None:
    before = weights(networks)
    with raises_code("adapter.other_architecture", reason) as error:
        use(networks, [(adapter(1), 1.0), (wrong, 1.0)])
    assert "\n" not in str(error.value)
    assert equal(weights(networks), before)


def test_finds_a_text_encoder_s_layers_under_either_name() -> None:
    def text_encoder(nested: bool) -> nn.Module:
        encoder = nn.ModuleDict({"encoder": nn.Linear(4, 4)})
        return nn.ModuleDict({"text_model": encoder}) if nested else encoder

    delta = next(iter(adapter(1, names=("net.1",)).values()))
    for nested, name in [(True, "text_encoder.encoder"), (False, "text_encoder.text_model.encoder")]:
        network = text_encoder(nested)
        before = next(network.parameters()).clone()
        merge({"text_encoder": network}, [({name: delta}, 1.0)])
        assert not torch.equal(next(network.parameters()), before)
    twice = {"text_encoder.encoder": delta, "text_encoder.text_model.encoder": delta}
    with raises_code("adapter.layer_twice", "twice, under two names"):
        merge({"text_encoder": text_encoder(False)}, [(twice, 1.0)])
