"""Training over quantised weights gives what plain layers with these very weights give, and libraries read the same."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes
import bitsandbytes.functional
import pytest
import torch
import torchao.quantization
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.saved_tensors import saved_tensor_bytes
from tests.networks import NETWORKS, Network, gradients, worst
from tests.tolerance import AS_NEAR, distance, rounding, sum_error
from veneer.engine import MemoryLevel, prepare, quantize
from veneer.engine.quantization import FORMATS
from veneer.engine.quantized import QuantizedConv2d, QuantizedLayer, QuantizedLinear

LEVELS: tuple[MemoryLevel, ...] = ("exact", "lean", "leaner", "checkpoint")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def read_by_library(format: str, weight: Tensor) -> Tensor:
    if format in ("bfloat16", "float16"):
        return weight.to(getattr(torch, format)).to(weight.dtype)
    bnb, ao = bitsandbytes.functional, torchao.quantization
    if format == "bnb_nf4":
        return bnb.dequantize_4bit(*bnb.quantize_4bit(weight, compress_statistics=True, quant_type="nf4"))
    if format == "bnb_int8":
        return bnb.int8_vectorwise_dequant(*bnb.int8_vectorwise_quant(weight.half())[:2])
    kind = ao.Int8Tensor if format == "torchao_int8" else ao.Float8Tensor
    return kind.from_hp(weight, granularity=ao.PerRow()).dequantize()


@pytest.mark.parametrize("format", FORMATS)
def test_a_weight_is_read_as_its_library_reads_it(format: str) -> None:
    layer = nn.Linear(72, 40)
    held = QuantizedLinear(layer, FORMATS[format])
    assert torch.equal(held.weight, read_by_library(format, layer.weight.detach()))
    error = float((held.weight - layer.weight).norm() / layer.weight.norm())
    assert 1e-4 < error < (0.12 if format == "bnb_nf4" else 0.04)


def test_nf4_trains_as_the_layer_of_bitsandbytes_does() -> None:
    layer, x = nn.Linear(64, 96), numbers(5, 64).requires_grad_()
    theirs = bitsandbytes.nn.Linear4bit(64, 96, quant_type="nf4", compute_dtype=torch.float32)
    theirs.load_state_dict(layer.state_dict())
    theirs = theirs.to("cpu").train()
    ours = QuantizedLinear(layer, FORMATS["bnb_nf4"])
    results = []
    for each in (theirs, ours):
        y = each(x)
        results.append((y.detach(), *torch.autograd.grad((y * numbers(5, 96, seed=1)).sum(), x)))
    weight = ours.weight.detach().abs()
    assert_sums(results[1][0], results[0][0], x.detach().abs() @ weight.T + layer.bias.detach().abs(), 65)
    assert_sums(results[1][1], results[0][1], numbers(5, 96, seed=1).abs() @ weight, 96)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 4, "bias": False}, {"dilation": 2}])
def test_a_packed_kernel_convolves_as_one_that_was_rounded(options: dict[str, Any], precision: str) -> None:
    """To the bit, and so do the gradients of its input and its bias."""
    layer: Any = nn.Conv2d(8, 12, 3, **options)
    held = QuantizedConv2d(layer, FORMATS["bfloat16"])
    layer.weight.data = layer.weight.data.bfloat16().float()
    x, results = numbers(2, 8, 9, 9).requires_grad_(), []
    learning = [x] if layer.bias is None else [x, layer.bias]
    for each in (layer, held):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            y = each(x)
        results.append((y.detach(), *torch.autograd.grad((y.float() * numbers(*y.shape, seed=1)).sum(), learning)))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2**-7 if precision == "bfloat16" else 1e-5, atol=1e-5)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert (
        repr(held).startswith("QuantizedConv2d(8, 12, kernel_size=(3, 3)") and held.weight.shape == layer.weight.shape
    )


def assert_sums(found: Tensor, expected: Tensor, magnitude: Tensor, terms: int) -> None:
    """Each is a sum of products, of which the magnitude has the absolute values; either may round its own way."""
    assert ((found.double() - expected.double()).abs() <= 2 * sum_error(magnitude, terms)).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("memory", LEVELS)
def test_gradients_of_a_and_b_in_closed_form(format: str, memory: MemoryLevel) -> None:
    """h = W x + b + s B A x: dA = s B' dY' X, dB = s dY' (A X)', dX = dY (W + s B A) (Hu et al. 2021, eq. 3)."""
    model = nn.Sequential(nn.Linear(24, 40))
    quantize(model, format)
    weight = model[0].weight.double()
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["0"], init_lora_weights=False)
    inject_adapter_in_model(config, model)
    layer: Any = model[0]
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x, dy = numbers(7, 24).requires_grad_(), numbers(7, 40, seed=1)
    if memory != "checkpoint":  # has no blocks
        prepare(model, memory)
    y = model(x)
    dx, d_down, d_up = torch.autograd.grad((y * dy).sum(), (x, down, up))
    scale, a, b, wide, out = 2.0, down.detach().double(), up.detach().double(), x.detach().double(), dy.double()
    bias = layer.base_layer.bias.detach().double()
    merged, factors = weight + scale * b @ a, weight.abs() + scale * b.abs() @ a.abs()
    assert_sums(y, wide @ merged.T + bias, wide.abs() @ factors.T + bias.abs(), 28)
    assert_sums(d_down, scale * b.T @ out.T @ wide, scale * b.abs().T @ out.abs().T @ wide.abs(), 40 * 7)
    assert_sums(d_up, scale * out.T @ (wide @ a.T), scale * out.abs().T @ (wide.abs() @ a.abs().T), 7 * 24)
    assert_sums(dx, out @ merged, out.abs() @ factors, 43)


def read_out(model: nn.Module) -> nn.Module:
    """A copy with plain layers of the very weights that the bits say."""
    plain = copy.deepcopy(model)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, QuantizedLayer):
                layer = plain_layer(child)
                layer.load_state_dict({key: value.clone() for key, value in child.state_dict().items()})
                setattr(parent, name, layer)
    return plain


def plain_layer(layer: Any) -> nn.Module:
    has_bias = layer.bias is not None
    if isinstance(layer, QuantizedLinear):
        return nn.Linear(layer.in_features, layer.out_features, has_bias)
    sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return nn.Conv2d(*sizes, groups=layer.groups, bias=has_bias)


def with_adapter(network: Network, model: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=list(network.targets), init_lora_weights=False)
        return inject_adapter_in_model(config, model.requires_grad_(False)).train()


def pair(network: Network, format: str) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network.make()
    assert quantize(model, format) > 5
    plain = read_out(model)
    assert not any(isinstance(module, QuantizedLayer) for module in plain.modules())
    return with_adapter(network, model), with_adapter(network, plain)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["sd, all of it", "sdxl", "flux", "clip", "t5"])
def test_a_network_trains_as_with_these_weights(kind: str, format: str) -> None:
    network = NETWORKS[kind]
    held, plain = pair(network, format)
    reference_output, reference = gradients(network, plain)
    output_error, error = rounding(lambda wide: gradients(network, wide, torch.float64), plain)
    for memory in LEVELS:
        prepared = prepare(held, memory)
        output, found = gradients(network, held)
        prepared.undo()
        assert worst({"": output}, {"": reference_output}) <= 2 * output_error, memory
        assert worst(found, reference) <= 2 * error, memory


@pytest.mark.parametrize("kind", ["sd", "flux", "clip"])
def test_levels_of_a_quantised_network_have_one_another_s_bits(kind: str) -> None:
    network = NETWORKS[kind]
    held, _ = pair(network, "bnb_nf4")
    results = []
    for memory in LEVELS[1:]:
        prepared = prepare(held, memory)
        results.append(gradients(network, held))
        prepared.undo()
    for output, found in results[1:]:
        assert torch.equal(output, results[0][0])
        assert all(torch.equal(found[name], results[0][1][name]) for name in found)


@pytest.mark.parametrize("format", FORMATS)
def test_autocast_reads_in_its_own_precision(format: str) -> None:
    network = NETWORKS["sd"]
    held, plain = pair(network, format)
    truth = gradients(network, copy.deepcopy(plain).double(), torch.float64)[1]
    _, reference = gradients(network, plain, autocast=True)
    for memory in ("exact", "lean"):
        prepared = prepare(held, memory)
        _, found = gradients(network, held, autocast=True)
        prepared.undo()
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
        assert distance(found, truth) <= AS_NEAR * distance(reference, truth)


@pytest.mark.parametrize("memory", LEVELS)
def test_weights_that_were_read_are_not_kept(memory: MemoryLevel) -> None:
    network = NETWORKS["sdxl"]
    held, plain = pair(network, "bnb_nf4")
    kept = []
    for model in (held, plain):
        prepare(model, memory)
        kept.append(saved_tensor_bytes(lambda model=model: network.call(model, torch.float32).square().mean()))
    assert kept[0] <= kept[1]


def test_without_gradients_a_layer_is_a_plain_one() -> None:
    layer = QuantizedLinear(nn.Linear(16, 8), FORMATS["torchao_int8"])
    x = numbers(3, 16)
    with torch.no_grad():
        assert torch.equal(layer(x), functional.linear(x, layer.weight.clone(), layer.bias))
        assert layer(x.bfloat16()).dtype == torch.bfloat16
