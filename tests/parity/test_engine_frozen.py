"""The frozen layers' functions against PyTorch's own: outputs, gradients, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers.models.activations import GEGLU
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck

from veneer.engine import frozen, layers

SMALL = st.integers(1, 3)


def kept(run: Callable[[], Tensor], *weights: Tensor) -> list[tuple[int, ...]]:
    """Shapes of what autograd is asked to keep, but for weights and views of them."""
    seen: dict[int, tuple[int, ...]] = {}
    own = {weight.untyped_storage().data_ptr() for weight in weights}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            seen[place] = tuple(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return sorted(seen.values())


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A frozen convolution of 1 to 3 dimensions with groups, strides, padding and dilation, and an input for it."""
    dimensions = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    kernel, stride, padding, dilation = (
        tuple(draw(st.lists(st.integers(low, 3), min_size=dimensions, max_size=dimensions))) for low in (1, 1, 0, 1)
    )
    sides = draw(st.lists(st.integers(3, 8), min_size=dimensions, max_size=dimensions))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(all(side + 2 * pad >= r for side, pad, r in zip(sides, padding, reach, strict=True)))
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    ins, outs = groups * draw(SMALL), groups * draw(SMALL)
    layer = kind(ins, outs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
    return layer.requires_grad_(False), torch.randn(draw(SMALL), ins, *sides)


@settings(max_examples=60)
@given(convolutions())
def test_convolution_is_pytorch_s_and_keeps_its_weight_alone(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    x.requires_grad_()
    reference = layer(x)
    dy = torch.randn_like(reference)
    expected = torch.autograd.grad(reference, x, dy)[0]
    layers.LAYER_FORWARDS[type(layer)](layer).install()
    y = layer(x)
    assert torch.equal(y, reference)
    torch.testing.assert_close(torch.autograd.grad(y, x, dy)[0], expected, rtol=1e-5, atol=1e-6)
    assert kept(lambda: layer(x), *layer.parameters()) == []


@settings(max_examples=60)
@given(convolutions())
def test_convolution_as_a_product_is_the_same_map(case: tuple[nn.Module, Tensor]) -> None:
    """The way of large weights over few places, taken for small ones too."""
    layer, x = case
    x.requires_grad_()
    reference = layer(x)
    dy = torch.randn_like(reference)
    expected = torch.autograd.grad(reference, x, dy)[0]
    layers.LAYER_FORWARDS[type(layer)](layer).install()
    with mock.patch.multiple(frozen, _MIN_WEIGHT_NUMEL=1, _MIN_CHANNELS_PER_POSITION=0):
        y = layer(x)
        torch.testing.assert_close(y, reference, rtol=1e-5, atol=1e-6)
        assert y.is_contiguous()
        torch.testing.assert_close(torch.autograd.grad(y, x, dy)[0], expected, rtol=1e-5, atol=1e-6)
        assert kept(lambda: layer(x), *layer.parameters()) == []


@pytest.mark.parametrize("batch", [1, 3])
def test_large_weights_over_few_places_become_a_product(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to the truth in float64 as PyTorch's convolution is."""
    layer = nn.Conv2d(384, 400, 3, padding=1).requires_grad_(False)
    x, dy = torch.randn(batch, 384, 5, 5), torch.randn(batch, 400, 5, 5)

    def both(layer: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        own = x.to(dtype).requires_grad_()
        y = layer.to(dtype)(own)
        return y.detach().double(), torch.autograd.grad(y, own, dy.to(dtype))[0].double()

    truth, reference = both(layer, torch.float64), both(layer)
    monkeypatch.setattr(frozen, "_MIN_WEIGHT_NUMEL", 2**20)
    calls: list[str] = []
    for way in ("_as_product", "_input_gradient_as_product"):
        plain = getattr(frozen.ConvGeometry, way)
        monkeypatch.setattr(
            frozen.ConvGeometry, way, lambda *a, plain=plain, way=way: (calls.append(way), plain(*a))[1]
        )
    layers.LAYER_FORWARDS[nn.Conv2d](layer).install()
    for found, theirs, true in zip(both(layer), reference, truth, strict=True):
        assert (found - true).abs().max() <= 2 * (theirs - true).abs().max()
    assert calls == ["_as_product", "_input_gradient_as_product"]
    calls.clear()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x.requires_grad_())
    layer(torch.randn(1, 384, 11, 11, requires_grad=True))  # 121 places
    layer.double()(x.double().detach().requires_grad_())
    assert calls == []


@pytest.mark.parametrize("settings", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"}])
def test_other_padding_is_pytorch_s(settings: dict[str, Any]) -> None:
    layer: Any = nn.Conv2d(2, 3, 3, **settings).requires_grad_(False)
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    expected = layer(x)
    layers.LAYER_FORWARDS[nn.Conv2d](layer).install()
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x[0]), expected[0])


def test_a_convolution_that_learns_or_wants_no_gradient_is_pytorch_s() -> None:
    layer = nn.Conv2d(2, 3, 3)
    layers.LAYER_FORWARDS[nn.Conv2d](layer).install()
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.bias is not None and layer.bias.grad is not None
    layer.requires_grad_(False)
    assert layer(x.detach()).grad_fn is None
    with torch.no_grad():
        assert layer(x).grad_fn is None


def test_gradcheck() -> None:
    window = frozen.ConvGeometry((2, 1), (1, 2), (1, 2), 2)
    weight, bias = torch.randn(4, 2, 3, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: frozen.conv(x, weight, bias, window), x)
    row = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(5, 6, dtype=torch.float64)
    assert gradcheck(lambda x: frozen.linear(x, matrix, None), row)
    assert gradcheck(frozen.geglu, row)
    assert gradcheck(lambda x: frozen.recomputed(lambda x: x * torch.sigmoid(1.702 * x), x), row)


def test_autocast_keeps_no_copy_of_a_weight() -> None:
    """PyTorch keeps the copy that autocast makes of each frozen weight: half the model once more."""
    for layer, x in (
        (nn.Linear(6, 5), torch.randn(3, 4, 6)),
        (nn.Conv2d(6, 5, 3), torch.randn(2, 6, 4, 4)),
    ):
        layer.requires_grad_(False)
        x.requires_grad_()
        results = []
        for forward in (None, layers.LAYER_FORWARDS[type(layer)]):
            if forward is not None:
                forward(layer).install()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                shapes = kept(lambda layer=layer, x=x: layer(x), *layer.parameters())
                y = layer(x)
            results.append((y, torch.autograd.grad(y.float().square().sum(), x)[0], shapes))
        (y, dx, asked), (own_y, own_dx, own_asked) = results
        assert own_y.dtype == torch.bfloat16 and torch.equal(own_y, y)
        assert own_dx.dtype == torch.float32
        torch.testing.assert_close(own_dx, dx, rtol=1e-2, atol=1e-3)
        assert asked and not own_asked


@given(st.lists(SMALL, min_size=1, max_size=3), st.integers(1, 5))
def test_geglu_is_diffusers_s(places: list[int], width: int) -> None:
    layer: Any = GEGLU(3, width).requires_grad_(False)
    x = torch.randn(*places, 3, requires_grad=True)
    expected = layer(x)
    dy = torch.randn_like(expected)
    gradient = torch.autograd.grad(expected, x, dy)[0]
    layers.LAYER_FORWARDS[GEGLU](layer).install()
    y = layer(x)
    assert torch.equal(y, expected)
    assert torch.equal(torch.autograd.grad(y, x, dy)[0], gradient)
    assert kept(lambda: layer(x), *layer.parameters()) == [(*places, 2 * width)]
    with torch.no_grad():
        assert torch.equal(layer(x), expected)


WRITTEN_OUT = [cls for cls, forward in layers.LAYER_FORWARDS.items() if forward is layers._SeveralOperations]


@pytest.mark.parametrize("plain", WRITTEN_OUT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_as_several_operations_keeps_its_input_alone(plain: Any, dtype: torch.dtype) -> None:
    sizes: dict[str, tuple[Any, ...]] = {"RMSNorm": (6, 1e-6), "T5LayerNorm": (6,), "FP32LayerNorm": (6,)}
    sizes |= {"Krea2RMSNorm": (6,)}
    layer = plain(*sizes.get(plain.__name__, ())).to(dtype).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.normal_()
    x = torch.randn(2, 3, 6, dtype=dtype, requires_grad=True)
    expected = layer(x)
    dy = torch.randn_like(expected)
    gradient = torch.autograd.grad(expected, x, dy)[0]
    layers.LAYER_FORWARDS[plain](layer).install()
    y = layer(x)
    assert torch.equal(y, expected) and torch.equal(torch.autograd.grad(y, x, dy)[0], gradient)
    assert kept(lambda: layer(x)) == [(2, 3, 6)]
