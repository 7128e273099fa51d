"""The bank of adapters: what it takes, what it refuses, and that it leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.errors import raises_code
from veneer.adapter.inject import inject
from veneer.adapter.lora import LoraFactors, LoraSpec
from veneer.adapter.merge import merge
from veneer.adapter.protocol import AdapterWeights
from veneer.engine.adapter_bank import AdapterBank
from veneer.sample.generate import generate_each


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.out = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).mean((2, 3)))


def adapter(seed: int, rank: int = 2, layers: tuple[str, ...] = ("conv", "out")) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv": ((rank, 3, 3, 3), (4, rank, 1, 1)), "out": ((rank, 4), (5, rank))}
    drawn = {name: [torch.randn(shape, generator=generator) for shape in shapes[name]] for name in layers}
    return {f"net.{name}": LoraFactors(down, up, 2.0) for name, (down, up) in drawn.items()}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def bank(net: Net) -> AdapterBank:
    bank = AdapterBank({"net": net})
    bank.add("a", adapter(1))
    bank.add("b", adapter(2, rank=7, layers=("out",)))
    return bank


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(9))


def hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in net.modules())


@pytest.mark.parametrize("weight", ["0.5", None, [1.0], float("nan"), float("inf")])
def test_a_weight_that_is_no_finite_number_is_refused(bank: AdapterBank, weight: Any) -> None:
    with raises_code("adapter.bad_strength"), bank.rows([("a", weight)]):
        pass


@pytest.mark.parametrize("row", [3, ("a", 0.5, 1), ("a",), (3, 0.5), ["a", 0.5], {"a"}])
def test_a_row_that_is_none_is_refused(bank: AdapterBank, row: Any) -> None:
    with raises_code("adapter.bad_row") as caught, bank.rows([row]):
        pass
    remedy = "give a name, (name, strength), {name: strength, ...}, or None"
    assert str(caught.value) == f"a row is {row!r}; {remedy}"


def test_adding_and_removing(bank: AdapterBank) -> None:
    assert bank.names == ("a", "b")
    bank.remove("a")
    assert bank.names == ("b",)
    with raises_code("adapter.unknown_name") as caught, bank.rows(["a"]):
        pass
    assert str(caught.value) == "no adapter 'a' is in the bank; in it: b"
    bank.add("a", adapter(3))
    assert bank.names == ("b", "a")


def test_the_numbers_are_not_copied_and_not_changed(net: Net, bank: AdapterBank) -> None:
    given = adapter(4)
    before = {path: (f.down.clone(), f.up.clone()) for path, f in given.items()}
    bank.add("c", given)
    assert all(bank._adapters["c"][path].down is given[path].down for path in given)
    with bank.rows(["c", ("c", 3.0)]):
        net(X)
    assert all(torch.equal(f.down, before[p][0]) and torch.equal(f.up, before[p][1]) for p, f in given.items())


def test_outside_the_block_the_network_is_as_it_was(net: Net, bank: AdapterBank) -> None:
    before, state = net(X), {name: value.clone() for name, value in net.state_dict().items()}
    with bank.rows(["a", "b"]):
        assert hooks(net) == 2
        assert not torch.equal(net(X), before)
    with pytest.raises(ZeroDivisionError), bank.rows(["a", None]):
        raise ZeroDivisionError
    assert hooks(net) == 0
    assert torch.equal(net(X), before)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    with bank.rows(["b"]):  # the layers that no row changes are not touched
        assert hooks(net) == 1
    with bank.rows([None, {}, ("a", 0.0)]):
        assert hooks(net) == 0


def test_rows_that_are_set_keep_their_adapter(net: Net, bank: AdapterBank) -> None:
    with bank.rows(["a", None]):
        expected = net(X)
        bank.remove("a")
        bank.add("a", adapter(5))
        assert torch.equal(net(X), expected)


def test_it_adds_to_merged_and_to_injected_adapters(net: Net, bank: AdapterBank) -> None:
    expected = {}
    for weight in (0.0, 0.5):
        merged = merge({"net": net}, [(adapter(1), 1.0), (adapter(6), weight)])
        expected[weight] = net(X)
        merged.undo()
    merged = merge({"net": net}, [(adapter(6), 0.5)])
    with bank.rows(["a", "a"]):
        torch.testing.assert_close(net(X), expected[0.5], rtol=0, atol=1e-5)
    merged.undo()
    injection = inject({"net": net}, {"net": LoraSpec(2, 2.0, ("out",))}, seed=0)
    with bank.rows(["a", "a"]):
        torch.testing.assert_close(net(X), expected[0.0], rtol=0, atol=1e-5)
    injection.eject()


def test_gradients_flow_to_the_input_and_the_weights(net: Net, bank: AdapterBank) -> None:
    merged = merge({"net": net}, [(adapter(1), 1.0)])
    x = X.clone().requires_grad_()
    expected = torch.autograd.grad(net(x).square().sum(), [x, net.conv.weight, net.out.bias])
    merged.undo()
    with bank.rows(["a", "a"]):
        found = torch.autograd.grad(net(x).square().sum(), [x, net.conv.weight, net.out.bias])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_layer_called_by_keyword(net: Net, bank: AdapterBank) -> None:
    with bank.rows(["a", "b"]):
        assert torch.equal(net.out(input=X[:, 0, 0, :4]), net.out(X[:, 0, 0, :4]))


def test_float16_adapters_are_taken(net: Net, bank: AdapterBank) -> None:
    bank.add("half", {path: f.to("cpu", torch.float16) for path, f in adapter(1).items()})
    with bank.rows(["a", "a"]):
        expected = net(X)
    with bank.rows(["half", "half"]):
        torch.testing.assert_close(net(X), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize(("rows", "guidance"), [(1, False), (3, False), (3, True), (4, True)])
def test_another_number_of_rows_is_one_line(net: Net, bank: AdapterBank, rows: int, guidance: bool) -> None:
    with bank.rows(["a"] * rows, guidance=guidance), raises_code("adapter.other_batch_size") as caught:
        net(X)
    remedy = "give one entry a row, and guidance=True where the pipeline doubles them for it"
    assert str(caught.value) == f"net.conv: the batch has 2 rows, and adapters are set for {rows}; {remedy}"


def test_guidance_takes_both_the_single_and_the_doubled_batch(net: Net, bank: AdapterBank) -> None:
    with bank.rows(["a", "b"]):
        single = net(X)
    with bank.rows(["a", "b"], guidance=True):
        torch.testing.assert_close(net(torch.cat([X, X])), torch.cat([single, single]), rtol=0, atol=1e-5)
        torch.testing.assert_close(net(X), single, rtol=0, atol=1e-5)
        with raises_code("adapter.other_batch_size"):
            net(torch.cat([X, X, X]))


def test_a_layer_may_get_each_row_as_several_adjacent_ones() -> None:
    """As a layer does that is given a text's tokens one by one."""
    torch.manual_seed(0)
    net, x = nn.ModuleDict({"out": nn.Linear(4, 5)}), torch.randn(2, 3, 6, 4)
    bank = AdapterBank({"net": net})
    bank.add("a", adapter(1, layers=("out",)))
    with bank.rows([None, ("a", 0.5)]):
        expected = net["out"](x)
    with bank.rows([None, ("a", 0.5)], folded=("net.o",)):
        torch.testing.assert_close(net["out"](x.flatten(0, 1)), expected.flatten(0, 1))
    with raises_code("adapter.other_batch_size"), bank.rows([None, "a"], folded=("net.other.",)):
        net["out"](x.flatten(0, 1))


def test_what_is_refused(net: Net, bank: AdapterBank) -> None:
    with raises_code("adapter.name_taken") as caught:
        bank.add("a", adapter(1))
    assert str(caught.value) == "an adapter 'a' is in the bank already; remove it, or use another name"
    with raises_code("adapter.other_architecture"):
        bank.add("c", {"net.out": LoraFactors(torch.ones(2, 9), torch.ones(5, 2), 1.0)})
    assert bank.names == ("a", "b")
    for rows in ([("a", float("nan"))], [{"a": float("inf")}]):
        with raises_code("adapter.bad_strength"), bank.rows(rows):
            pass
    with raises_code("adapter.unknown_name"), bank.rows([None, "x"]):
        pass
    with raises_code("adapter.unknown_name"):
        bank.remove("x")
    with bank.rows(["a"]), raises_code("adapter.rows_set") as caught, bank.rows(["a"]):
        pass
    assert str(caught.value) == "rows are set already; leave that block first"
    assert hooks(net) == 0


def test_layers_whose_rows_cannot_be_told_apart_are_refused() -> None:
    net = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "conv": nn.Conv2d(4, 4, 3, groups=2)})
    bank = AdapterBank({"net": net})
    with raises_code("adapter.layer_not_called") as caught:
        bank.add("a", {"net.attention.out_proj": LoraFactors(torch.ones(1, 4), torch.ones(4, 1), 1.0)})
    what = "net.attention.out_proj is never called by itself, so its rows cannot be told apart"
    assert str(caught.value) == f"{what}; merge the adapter"
    with raises_code("adapter.unsupported_convolution") as caught:
        bank.add("a", {"net.conv": LoraFactors(torch.ones(1, 2, 3, 3), torch.ones(4, 1, 1, 1), 1.0)})
    assert "net.conv is a convolution with groups or padding other than zeros; merge" in str(caught.value)


def test_a_compiled_network_is_refused(net: Net, bank: AdapterBank) -> None:
    net.out.compile()  # compiles nothing before it is called
    with raises_code("adapter.compiled") as caught, bank.rows(["a"]):
        pass
    assert str(caught.value) == "net is compiled, which leaves no place for adapters; do not compile it"


def test_each_picture_needs_its_entry(bank: AdapterBank) -> None:
    with raises_code("sample.rows_and_prompts"):
        generate_each(None, bank, ["a"], ["one", "two"], [0, 1])  # type: ignore[arg-type]
