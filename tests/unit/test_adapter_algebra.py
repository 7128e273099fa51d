"""Adapters combined, merged and stacked; the base always comes back to its bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraFactors, LoraSpec, delta_weight
from veneer.adapter.merge import combine, merge
from veneer.adapter.protocol import AdapterWeights
from veneer.adapter.stack import AdapterStack
from veneer.errors import UserError


def adapter(
    seed: int, rank: int = 2, alpha: float = 3.0, names: tuple[str, ...] = ("net.0", "net.1")
) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)

    def factors(name: str) -> LoraFactors:
        kernel, place = ((3, 3), (1, 1)) if name == "net.0" else ((), ())
        down = torch.randn(rank, 4, *kernel, generator=generator)
        return LoraFactors(down, torch.randn(4, rank, *place, generator=generator), alpha)

    return {name: factors(name) for name in names}


@pytest.fixture
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"net": nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(4, 4))}


def weights(networks: dict[str, nn.Module]) -> list[Tensor]:
    return [networks["net"][0].weight.detach().clone(), networks["net"][1].weight.detach().clone()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


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
def test_a_weight_that_is_no_finite_number_is_refused(networks: dict[str, nn.Module], weight: Any) -> None:
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
        with pytest.raises(UserError, match="the strength of adapter "):
            act()
        assert equal(weights(networks), added) and stack.names == ("a",)
    stack.clear()
    assert equal(weights(networks), before)


def test_combine_refuses_different_architectures() -> None:
    other = {"net.1": LoraFactors(torch.ones(2, 5), torch.ones(4, 2), 1.0)}
    with pytest.raises(UserError, match=r"net.1 is \(4, \d\) and \(4, \d\)"):
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
    with pytest.raises(UserError, match="merged after these"):
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
        ({"net.1": LoraFactors(torch.ones(2, 5), torch.ones(4, 2), 1.0)}, r"net.1 is \(4, 5\) in it and \(4, 4\)"),
        ({"net.7": LoraFactors(torch.ones(2, 5), torch.ones(4, 2), 1.0)}, r"changes net.7 \(4, 5\), which the base"),
        ({"other.1": LoraFactors(torch.ones(2, 5), torch.ones(4, 2), 1.0)}, "changes other.1"),
    ],
)
@pytest.mark.parametrize("use", [lambda n, a: merge(n, a), lambda n, a: AdapterStack(n).add("x", a[-1][0])])
def test_refuses_another_architecture(
    networks: dict[str, nn.Module], wrong: AdapterWeights, reason: str, use: Callable[..., object]
) -> None:
    before = weights(networks)
    with pytest.raises(UserError, match=f"of another architecture: .*{reason}") as error:
        use(networks, [(adapter(1), 1.0), (wrong, 1.0)])
    assert "\n" not in str(error.value)
    assert equal(weights(networks), before)


def test_finds_clip_layers_under_either_name() -> None:
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
    with pytest.raises(UserError, match="twice"):
        merge({"text_encoder": text_encoder(False)}, [(twice, 1.0)])


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
    for mistake in (
        lambda: stack.add("one", adapter(2)),
        lambda: stack.remove("two"),
        lambda: stack.set_strengths({"one": 2.0, "two": 1.0}),
    ):
        with pytest.raises(UserError, match=r"'one' is loaded already|no adapter 'two' is loaded; loaded: one"):
            mistake()
    assert equal(weights(networks), before)
