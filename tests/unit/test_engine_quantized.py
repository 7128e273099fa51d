"""Layers held in few bits: what they weigh, what may be done with them, and what is refused."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from veneer.adapter.algebra import merge
from veneer.adapter.applied import applied
from veneer.adapter.spec import LoraFactors
from veneer.engine import quantize
from veneer.engine.forms import FORMS
from veneer.engine.quantized import Quantized, check_form, form_of, parameter_count
from veneer.errors import UserError


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 4))


@settings(max_examples=25)
@given(st.integers(1, 70), st.integers(2, 70), st.sampled_from(sorted(FORMS)))
def test_a_plan_knows_the_bytes(outputs: int, inputs: int, form: str) -> None:
    held = Quantized(nn.Linear(inputs, outputs), FORMS[form])
    assert tuple(part.numel() for part in held.parts) == FORMS[form].sizes((outputs, inputs))
    assert held.weight.shape == (outputs, inputs)


@pytest.mark.parametrize("form", FORMS)
def test_only_linear_layers_change(form: str) -> None:
    model, before = network(), network()
    count = parameter_count(model)
    assert quantize(model, form) == 2
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.Flatten, Quantized, nn.LayerNorm, Quantized]
    assert torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[2].bias, before[2].bias)
    assert parameter_count(model) == count == sum(parameter.numel() for parameter in before.parameters())
    assert form_of([model]) == form


def test_none_changes_nothing() -> None:
    model = network()
    assert quantize(model, "none") == 0
    assert form_of([model]) == "none"


@pytest.mark.parametrize("form", FORMS)
def test_a_cast_or_a_copy_keeps_the_bits(form: str) -> None:
    model = network()
    quantize(model, form)
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


def test_the_copy_of_a_weight_cannot_be_written_to() -> None:
    layer = Quantized(nn.Linear(8, 8), FORMS["bnb_nf4"])
    for write in (
        lambda: layer.weight.add_(1),
        lambda: layer.weight.data.add_(1),
        lambda: layer.weight.__iadd__(1),
        lambda: layer.weight.copy_(torch.ones(8, 8)),
    ):
        with pytest.raises(UserError, match="the weight is quantised and this is a copy of it, so nothing can be"):
            write()
    assert type(layer.weight + 1) is torch.Tensor


def test_nothing_is_merged_into_it() -> None:
    model = network()
    plain = copy.deepcopy(model)
    quantize(model, "bnb_int8")
    factors = {"net.2": LoraFactors(torch.randn(2, 16), torch.randn(24, 2), 2.0)}
    with pytest.raises(UserError, match=r"net\.2 is quantised, so nothing can be merged into its weight; load"):
        merge({"net": model}, [(factors, 1.0)])
    merge({"net": plain}, [(factors, 1.0)])
    adapted = inject_adapter_in_model(LoraConfig(r=2, target_modules=["2"], init_lora_weights=False), model)
    layer: Any = adapted[2]
    with pytest.raises(UserError, match="nothing can be merged into it; load the base in full for that"):
        layer.merge()


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
        with applied({"net": model}, factors), applied({"net": plain}, factors):
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
    with pytest.raises(UserError, match=r"train\.quantize: 'int3' is no form to hold weights in; use bnb_nf4"):
        quantize(model, "int3")
    quantize(model, "bnb_nf4")
    with pytest.raises(UserError, match="the network's weights are bnb_nf4 already; load it again"):
        quantize(model, "bnb_int8")
    adapted = inject_adapter_in_model(LoraConfig(r=2, target_modules=["2"]), network())
    with pytest.raises(UserError, match="the network carries an adapter; take it out first"):
        quantize(adapted, "bnb_nf4")


@pytest.mark.parametrize(("form", "library"), [("bnb_nf4", "bitsandbytes"), ("torchao_fp8", "torchao")])
def test_a_missing_library_is_named_with_its_extra(form: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError) as caught:
        quantize(network(), form)
    said = f"train.quantize: {form} needs {library}, which is not installed; pip install 'veneer[{library}]'"
    assert str(caught.value) == said


def test_a_base_in_another_form_is_not_trained_on() -> None:
    model = network()
    quantize(model, "bnb_nf4")
    check_form({"net": model}, "bnb_nf4")
    with pytest.raises(
        UserError, match=r"train\.quantize: is none, but the weights of the base's linear layers are bnb_nf4"
    ):
        check_form({"net": model}, "none")
