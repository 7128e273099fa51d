"""Layers held in few bits: what they weigh, what may be done with them, and what is refused."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import functional

from tests.errors import raises_code
from veneer.adapter.apply import apply_adapter
from veneer.adapter.lora import LoraFactors
from veneer.adapter.merge import merge
from veneer.engine import MemoryLevel, prepare, quantize
from veneer.engine.quantization import FORMATS
from veneer.engine.quantized import (
    QuantizedConv2d,
    QuantizedLinear,
    check_quantization,
    parameter_count,
    quantization_of,
)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 4))


@settings(max_examples=10)
@given(st.integers(1, 70), st.integers(2, 70), st.sampled_from(sorted(FORMATS)))
def test_a_plan_knows_the_bytes(outputs: int, inputs: int, format: str) -> None:
    held = QuantizedLinear(nn.Linear(inputs, outputs), FORMATS[format])
    assert tuple(part.numel() for part in held.parts) == FORMATS[format].part_sizes((outputs, inputs))
    assert held.weight.shape == (outputs, inputs)


@pytest.mark.parametrize("format", FORMATS)
def test_only_linear_layers_change_and_convolutions_to_16_bits(format: str) -> None:
    model, before = network(), network()
    count = parameter_count(model)
    kernel: Any = QuantizedConv2d if format in ("bfloat16", "float16") else nn.Conv2d
    assert quantize(model, format) == (2 if kernel is nn.Conv2d else 3)
    assert [type(layer) for layer in model] == [kernel, nn.Flatten, QuantizedLinear, nn.LayerNorm, QuantizedLinear]
    assert kernel is QuantizedConv2d or torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[2].bias, before[2].bias)
    assert parameter_count(model) == count == sum(parameter.numel() for parameter in before.parameters())
    assert quantization_of(model) == format


def test_kernels_that_pad_otherwise_than_with_zeros_stay() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding="same"), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
    assert quantize(model, "bfloat16") == 0


def test_none_changes_nothing() -> None:
    model = network()
    assert quantize(model, "none") == 0
    assert quantization_of(model) == "none"


@pytest.mark.parametrize("format", FORMATS)
def test_a_cast_or_a_copy_keeps_the_bits(format: str) -> None:
    model = network()
    quantize(model, format)
    weight, parts = model[2].weight, [part.clone() for part in model[2].parts]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other[2].weight, weight)
    model.to(torch.bfloat16)
    assert all(torch.equal(one, other) for one, other in zip(parts, model[2].parts, strict=True))
    assert model[2].weight.dtype == torch.bfloat16
    model.to(torch.float32)
    assert torch.equal(model[2].weight, weight)


def test_what_is_saved_loads_into_a_plain_network() -> None:
    model, plain = network(), network()
    quantize(model, "bnb_nf4")
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain[2].weight, model[2].weight)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(plain(x), model(x))


def test_a_layer_in_two_places_stays_one() -> None:
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.GELU(), layer)
    assert quantize(model, "torchao_fp8") == 1
    assert model[0] is model[2]


WRITES: dict[str, Callable[[torch.Tensor], object]] = {
    "method": lambda weight: weight.add_(1),
    "rare method": lambda weight: weight.addcmul_(weight, weight),
    "data": lambda weight: weight.data.add_(1),
    "operator": lambda weight: weight.__iadd__(1),
    "rare operator": lambda weight: weight.__ipow__(2),
    "item": lambda weight: weight.__setitem__(0, 1.0),
    "copy": lambda weight: weight.copy_(torch.ones(8, 8)),
    "init": lambda weight: nn.init.normal_(weight),
    "init by name": lambda weight: nn.init.normal_(tensor=weight),
    "out": lambda weight: torch.add(torch.ones(8, 8), 1, out=weight),
    "one of several out": lambda weight: torch.max(torch.ones(8, 8, 2), 2, out=(weight, torch.zeros(8, 8).long())),
    "of several": lambda weight: torch._foreach_mul_([weight], 2.0),
    "in place by switch": lambda weight: functional.relu(weight, inplace=True),
    "view": lambda weight: weight.detach().T[1:].mul_(2),
    "one of several views": lambda weight: weight.unbind()[3].zero_(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_the_copy_of_a_weight_cannot_be_written_to(write: Callable[[torch.Tensor], object]) -> None:
    layer = QuantizedLinear(nn.Linear(8, 8), FORMATS["bnb_nf4"])
    with raises_code("quantization.weight_written"):
        write(layer.weight)


def test_the_copy_of_a_weight_can_be_read() -> None:
    """What is computed with it is a plain tensor, and written to as ever."""
    layer = QuantizedLinear(nn.Linear(8, 8), FORMATS["bnb_nf4"])
    weight, other = layer.weight, torch.zeros(8, 8)
    other.add_(weight)
    other += weight
    torch.add(weight, weight, out=other)
    assert torch.equal(other, 2 * weight)
    assert weight.data.ndim == 2 and torch.equal(weight.data, weight)  # so peft's DoRA looks at it
    for plain in (weight + 1, weight.clone(), weight.detach().clone(), weight.T @ weight, weight.max(dim=1).values):
        assert type(plain) is torch.Tensor
        plain.zero_()
    assert torch.equal(weight.requires_grad_(False), layer.weight)


@pytest.mark.parametrize("format", FORMATS)
def test_it_loads_what_it_saved_to_the_bit_and_holds_what_else_is_loaded(format: str) -> None:
    model, other = network(), network()
    quantize(model, format)
    parts = [part.clone() for part in model[2].parts]
    model.load_state_dict(model.state_dict())
    assert all(torch.equal(one, two) for one, two in zip(parts, model[2].parts, strict=True))
    with torch.no_grad():
        other[2].weight.neg_()
    model.load_state_dict(other.state_dict())
    quantize(other, format)
    assert all(torch.equal(one, two) for one, two in zip(other[2].parts, model[2].parts, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(parts, model[2].parts, strict=True))


def test_what_it_cannot_load_is_said_as_of_a_plain_layer() -> None:
    layer = QuantizedLinear(nn.Linear(8, 4), FORMATS["bnb_nf4"])
    state = layer.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        layer.load_state_dict({"bias": state["bias"]})
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: \(4, 4\) in the file and \(4, 8\) here"):
        layer.load_state_dict({**state, "weight": torch.ones(4, 4)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*scale"):
        layer.load_state_dict({**state, "scale": torch.ones(1)})
    assert torch.equal(layer.state_dict()["weight"], state["weight"])


@pytest.mark.parametrize("memory", ["exact", "leaner"])
def test_a_bias_that_learns_has_its_gradient(memory: MemoryLevel) -> None:
    model = network().requires_grad_(False)
    quantize(model, "torchao_int8")
    plain = network().requires_grad_(False)
    plain.load_state_dict(model.state_dict())
    prepare(model, memory)
    x, gradients = torch.randn(2, 3, 6, 6), []
    for each in (model, plain):
        for layer in (each[2], each[3], each[4]):
            layer.bias.requires_grad_(True)
        each(x).square().sum().backward()
        gradients.append([layer.bias.grad for layer in (each[2], each[3], each[4])])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_nothing_is_merged_into_it() -> None:
    model = network()
    plain = copy.deepcopy(model)
    quantize(model, "bnb_int8")
    factors = {"net.2": LoraFactors(torch.randn(2, 16), torch.randn(24, 2), 2.0)}
    with raises_code("adapter.quantised_base"):
        merge({"net": model}, [(factors, 1.0)])
    merge({"net": plain}, [(factors, 1.0)])
    adapted = inject_adapter_in_model(LoraConfig(r=2, target_modules=["2"], init_lora_weights=False), model)
    layer: Any = adapted[2]
    with raises_code("quantization.weight_written") as caught:
        layer.merge()
    what = "the weight is quantised and this is a copy of it, so nothing can be merged into it"
    assert str(caught.value) == f"{what}; load the base in full for that"


def test_an_adapter_is_applied_beside_it_and_gone_after() -> None:
    model = network()
    quantize(model, "bnb_nf4")
    plain = network()
    plain.load_state_dict(model.state_dict())
    factors = {
        "net.0": LoraFactors(torch.randn(2, 3, 3, 3), torch.randn(8, 2, 1, 1), 2.0),
        "net.2": LoraFactors(torch.randn(2, 16), torch.randn(24, 2), 6.0),
    }
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        before = model(x)
        with apply_adapter({"net": model}, factors), apply_adapter({"net": plain}, factors):
            found, expected = model(x), plain(x)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert model(x).dtype == torch.bfloat16
        after = model(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, before, rtol=1e-2)
    assert torch.equal(after, before)
    assert torch.equal(plain[2].weight, model[2].weight)


def test_what_cannot_be_quantised_is_refused() -> None:
    model = network()
    with raises_code("quantization.unknown_format") as caught:
        quantize(model, "int3")
    assert str(caught.value).startswith("train.quantization: 'int3' is no quantisation format; use bfloat16, ")
    quantize(model, "bnb_nf4")
    with raises_code("quantization.already_quantized") as caught:
        quantize(model, "bnb_int8")
    assert str(caught.value) == "the network's weights are bnb_nf4 already; load it again"
    adapted = inject_adapter_in_model(LoraConfig(r=2, target_modules=["2"]), network())
    with raises_code("quantization.network_adapted") as caught:
        quantize(adapted, "bnb_nf4")
    assert str(caught.value) == "the network carries an adapter; take it out first"
    prepared = network()
    handle = prepare(prepared)
    with raises_code("quantization.network_prepared") as caught:
        quantize(prepared, "bnb_nf4")
    assert str(caught.value) == "the network is prepared; undo that, quantise it, and prepare it again"
    handle.undo()
    assert quantize(prepared, "bnb_nf4") == 2


@pytest.mark.parametrize(("format", "library"), [("bnb_nf4", "bitsandbytes"), ("torchao_fp8", "torchao")])
def test_a_missing_library_is_named_with_its_extra(format: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with raises_code("quantization.library_missing") as caught:
        quantize(network(), format)
    expected = f"train.quantization: {format} needs {library}, which is not installed; pip install 'veneer[{library}]'"
    assert str(caught.value) == expected


def test_a_base_in_another_format_is_not_trained_on() -> None:
    model, plain = network(), network()
    quantize(model, "bnb_nf4")
    check_quantization({"net": model}, "bnb_nf4")
    check_quantization({"net": plain, "convolutions": nn.Sequential(nn.Conv2d(3, 3, 1))}, "none")
    with raises_code("quantization.other_format"):
        check_quantization({"net": model}, "none")


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_each_network_that_learns_must_be_in_that_format(first: bool) -> None:
    model, plain = network(), network()
    quantize(model, "bnb_nf4")
    both = {"unet": model, "text_encoder": plain} if first else {"text_encoder": plain, "unet": model}
    with raises_code("quantization.other_format") as caught:
        check_quantization(both, "bnb_nf4")
    assert str(caught.value) == (
        "train.quantization: is bnb_nf4, but the weights of text_encoder's linear layers are none; "
        "load the base in that format: quantization and text_encoders of load_base"
    )


def test_a_network_that_is_held_by_halves_is_in_no_format() -> None:
    model = nn.Sequential(network(), network())
    quantize(model[0], "bnb_nf4")
    assert quantization_of(model) == "bnb_nf4 and none"
    for wanted in ("bnb_nf4", "none"):
        with raises_code("quantization.other_format") as caught:
            check_quantization({"net": model}, wanted)
        assert "are bnb_nf4 and none" in str(caught.value)
    with raises_code("quantization.already_quantized"):
        quantize(model, "bnb_nf4")
