"""The LoRA layer as one function against peft's: outputs, every gradient, masks, precisions, each order of work."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.autograd import gradcheck

from veneer.engine import layers, lora_function
from veneer.engine.frozen import ConvGeometry
from veneer.engine.lora_function import (
    CallSize,
    ComputeOrder,
    DenseMatrix,
    LoraMaps,
    Operands,
    fastest_order,
    lora_forward,
    lora_output,
)

ORDERS = [ComputeOrder(*(bool(number >> bit & 1) for bit in range(3))) for number in range(8)]


def adapt(layer: nn.Module, rank: int, **more: Any) -> nn.Module:
    """A frozen layer with a random adapter of strength 2."""
    layer.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["0"], init_lora_weights=False, **more)
    return inject_adapter_in_model(config, nn.Sequential(layer))[0]


def own(layer: nn.Module) -> nn.Module:
    """The same layer as one function; it shares the weights."""
    twin = copy.copy(layer)
    layers.LAYER_FORWARDS[type(layer)](twin).install()
    return twin


def gradients(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Output, dX, dA, dB; x feeds two branches."""
    torch.manual_seed(3)
    x = x.detach().requires_grad_()
    y = layer(x)
    factors = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    loss = (y * dy.to(y.dtype)).sum() + x.square().sum()
    return [y.detach(), *torch.autograd.grad(loss, [x, *factors])]


def check(layer: nn.Module, x: Tensor, rtol: float = 1e-4) -> None:
    """Each element differs from peft's by rounding alone."""
    dy = torch.randn(layer(x).shape)
    for found, expected in zip(gradients(own(layer), x, dy), gradients(layer, x, dy), strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


@st.composite
def linears(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    ins, outs, rank = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 12))
    places = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    dropout = draw(st.sampled_from([0.0, 0.4]))
    layer = adapt(nn.Linear(ins, outs, bias=draw(st.booleans())), rank, lora_dropout=dropout)
    return layer, torch.randn(*places, ins)


@settings(max_examples=60)
@given(linears())
def test_linear(case: tuple[nn.Module, Tensor]) -> None:
    check(*case)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    groups = draw(st.integers(1, 2))
    ins, outs, rank = (groups * draw(st.integers(1, 3)) for _ in range(3))
    kernel, stride, padding = (tuple(draw(st.lists(st.integers(low, 3), min_size=2, max_size=2))) for low in (1, 1, 0))
    base = nn.Conv2d(ins, outs, kernel, stride, padding, groups=groups, bias=draw(st.booleans()))
    layer = adapt(base, rank, lora_dropout=draw(st.sampled_from([0.0, 0.4])))
    return layer, torch.randn(draw(st.integers(1, 2)), ins, draw(st.integers(3, 7)), draw(st.integers(3, 7)))


@settings(max_examples=60)
@given(convolutions())
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd")
def test_convolution(case: tuple[nn.Module, Tensor]) -> None:
    check(*case)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_gives_the_same(order: ComputeOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_function, "fastest_order", lambda size, device: order)
    check(adapt(nn.Linear(9, 7), 3), torch.randn(2, 5, 9))
    check(adapt(nn.Conv2d(4, 5, 3, 2, 1), 3), torch.randn(2, 4, 6, 7))
    window, point = ConvGeometry((2, 1), (1, 0), (1, 1), 1), ConvGeometry((1, 1), (0, 0), (1, 1), 1)
    wide = {"dtype": torch.float64}
    x, weight = torch.randn(2, 3, 5, 4, **wide, requires_grad=True), torch.randn(4, 3, 3, 2, **wide)
    down, up = (torch.randn(shape, **wide, requires_grad=True) for shape in ((2, 3, 3, 2), (4, 2, 1, 1)))
    bias = torch.randn(4, **wide)
    windows = LoraMaps(window, window, point, 0.7)
    assert gradcheck(lambda x, a, b: lora_forward(Operands(x, weight, a, b, None), bias, windows), (x, down, up))
    row, matrix = torch.randn(2, 3, 5, **wide, requires_grad=True), torch.randn(4, 5, **wide)
    down, up = (torch.randn(shape, **wide, requires_grad=True) for shape in ((2, 5), (4, 2)))
    products = LoraMaps(DenseMatrix(), DenseMatrix(), DenseMatrix(), 0.7)
    assert gradcheck(lambda x, a, b: lora_forward(Operands(x, matrix, a, b, None), bias, products), (row, down, up))
    mask = torch.rand(row.shape) < 0.6
    masked = products._replace(keep_share=0.6)
    assert gradcheck(lambda x, a, b: lora_forward(Operands(x, matrix, a, b, mask), bias, masked), (row, down, up))
    operands = Operands(row, matrix, down, up, None)
    assert torch.equal(lora_output(operands, bias, products), lora_forward(operands, bias, products))


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(6, 5, 3)], ids=["linear", "convolution"])
def test_a_dropout_that_leaves_nothing_leaves_the_base(layer: nn.Module) -> None:
    x = torch.randn(2, 6, 4, 4) if isinstance(layer, nn.Conv2d) else torch.randn(3, 6)
    check(adapt(layer, 2, lora_dropout=1.0), x)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("make", [lambda: nn.Linear(24, 16), lambda: nn.Conv2d(6, 16, 3, padding=1)])
def test_precision(base: torch.dtype, autocast: bool, dropout: float, make: Any) -> None:
    """Float32 adapters on a base of either precision, with autocast and without: as near to the truth as peft."""
    torch.manual_seed(0)
    layer: Any = adapt(make(), 4, lora_dropout=dropout)
    layer.base_layer.to(base)
    x = torch.randn((5, 9, 24) if isinstance(layer.base_layer, nn.Linear) else (2, 6, 7, 7)).to(base)
    dy = torch.randn(layer(x).shape)
    truth = gradients(copy.deepcopy(layer).double(), x.double(), dy.double())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected, found = gradients(layer, x, dy), gradients(own(layer), x, dy)
    for mine, theirs, true in zip(found, expected, truth, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2 * float(true.abs().max()))
        mine_off, theirs_off = (float((each.double() - true).square().mean()) ** 0.5 for each in (mine, theirs))
        assert mine_off <= 1.3 * theirs_off + 1e-6 * float(true.abs().max())


def test_the_order_is_the_least_work() -> None:
    """The issue's shapes: many tokens merge, few split, a large rank takes the whole matrix's gradient."""
    attention, deep = CallSize(4096, 320, 320, 16, 4096 * 320), CallSize(64, 1280, 1280, 16, 64 * 1280)
    assert fastest_order(attention) == ComputeOrder(True, True, False)
    assert fastest_order(deep) == ComputeOrder(False, False, False)
    assert fastest_order(attention._replace(rank=128)) == ComputeOrder(True, True, True)
    assert not fastest_order(deep._replace(rank=128)).merged_output


@pytest.mark.parametrize("layer", [nn.Linear(320, 320), nn.Conv2d(32, 32, 1)])
def test_low_precision_and_dropout_are_never_merged(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[CallSize] = []

    def record(size: CallSize, device: str) -> ComputeOrder:
        sizes.append(size)
        return fastest_order(size, device)

    monkeypatch.setattr(lora_function, "fastest_order", record)
    x = torch.randn(4096, 320) if isinstance(layer, nn.Linear) else torch.randn(2, 32, 8, 8)
    plain = own(adapt(copy.deepcopy(layer), 4))
    plain(x)
    assert len(sizes) == 1
    assert sizes[0].tokens == (4096 if isinstance(layer, nn.Linear) else 2 * 8 * 8)
    own(adapt(copy.deepcopy(layer), 4, lora_dropout=0.1))(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain(x)
    low = own(adapt(copy.deepcopy(layer).bfloat16(), 4))
    low(x.bfloat16())
    assert len(sizes) == 1


@pytest.mark.parametrize("off", ["disabled", "merged", "two", "dora", "bias", "hook", "trainable", "no gradient"])
def test_all_but_the_plain_case_is_peft_s(off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"use_dora": off == "dora", "lora_bias": off == "bias"}
    layer: Any = adapt(nn.Linear(6, 5), 2, **more)
    if off == "disabled":
        layer.enable_adapters(False)
    elif off == "merged":
        layer.merge()
    elif off == "two":
        layer.update_layer("other", 2, 2, LoraConfig(init_lora_weights=False))
        layer.set_adapter(["default", "other"])
    elif off == "hook":
        layer.base_layer.register_forward_hook(lambda module, arguments, output: output + 1)
    elif off == "trainable":
        layer.base_layer.requires_grad_(True)
    monkeypatch.setattr(layers, "lora_forward", None)
    x = torch.randn(3, 6, requires_grad=True)
    with torch.set_grad_enabled(off != "no gradient"):
        assert torch.equal(own(layer)(x), layer(x))
        with pytest.raises(TypeError):
            torch.set_grad_enabled(True)
            own(adapt(nn.Linear(6, 5), 2))(x)


def test_layers_of_one_input_share_it() -> None:
    """peft keeps a float32 copy of a bfloat16 input for each layer; here the input itself is kept, once."""
    x = torch.randn(64, 32, dtype=torch.bfloat16, requires_grad=True) * 1
    triple: list[Any] = [adapt(nn.Linear(32, 32), 2) for _ in range(3)]
    for layer in triple:
        layer.base_layer.bfloat16()
    sizes = []
    for each in (triple, [own(layer) for layer in triple]):
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            if tensor.numel() >= 64 * 32:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            results = [layer(x) for layer in each]
        sizes.append(sum(storages.values()))
        del results
    assert sizes[0] == 3 * 64 * 32 * 4
    assert sizes[1] == 64 * 32 * 2
