"""The table of methods, and a method that can do nothing but be computed beside a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from tests.errors import raises_code
from veneer.adapter.apply import apply_adapter
from veneer.adapter.lora import LORA, LoraFactors
from veneer.adapter.merge import combine, merge
from veneer.adapter.protocol import Layer, Method
from veneer.adapter.registry import METHODS, TRAINED
from veneer.adapter.resize import resize
from veneer.adapter.stack import AdapterStack
from veneer.config.adapter_config import READ_METHODS, AdapterConfig
from veneer.config.load import build_config
from veneer.engine.adapter_bank import AdapterBank


def test_the_config_offers_the_methods_that_there_are() -> None:
    assert get_args(AdapterConfig.model_fields["method"].annotation) == tuple(TRAINED)


def test_a_method_that_is_only_read_is_not_trained() -> None:
    internal = {"ia3_of_peft", "oft_of_peft", "boft_of_peft", "biased"}
    assert set(READ_METHODS) == METHODS.keys() - TRAINED.keys() - internal
    with raises_code("config.invalid_value", "which is not trained here"):
        build_config({"base": "x", "data": {"sources": [{"path": "x"}]}, "adapter": {"method": "loha"}}, "x")


def test_an_ending_means_the_same_part_in_every_method() -> None:
    for naming in {naming for method in METHODS.values() for naming in method.endings}:
        meanings: dict[str, set[str]] = {}
        for method in METHODS.values():
            for ending, part in method.endings.get(naming, {}).items():
                meanings.setdefault(ending, set()).add(part)
        assert all(len(parts) == 1 for parts in meanings.values()), naming


class Opaque(LoraFactors):
    """Numbers of a method that has no delta W: what it does, it does to outputs."""

    @property
    def method(self) -> Method:
        return replace(LORA, names=replace(LORA.names, method="opaque", title="Opaque"), is_mergeable=False)

    def low_rank(self) -> None:  # type: ignore[override]
        return None

    def bypass(self, layer: Layer) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, output: output + 1


def test_what_cannot_be_merged_is_applied_beside_and_refused_elsewhere() -> None:
    networks: dict[str, nn.Module] = {"unet": nn.Sequential(nn.Linear(4, 4))}
    weights = {"unet.0": Opaque(torch.ones(2, 4), torch.ones(4, 2), 2.0)}
    x = torch.randn(2, 4)
    before = networks["unet"](x)
    with apply_adapter(networks, weights):
        assert torch.equal(networks["unet"](x), before + 1)
    assert torch.equal(networks["unet"](x), before)
    for code, act in {
        "adapter.cannot_merge": lambda: merge(networks, [(weights, 1.0)]),
        "adapter.cannot_combine": lambda: combine([(weights, 1.0)]),
        "adapter.cannot_resize": lambda: resize(weights, 1),
        "adapter.cannot_batch": lambda: AdapterBank(networks).add("one", weights),
    }.items():
        with raises_code(code) as error:
            act()
        assert "Opaque" in str(error.value) and error.value.remedy and "\n" not in str(error.value)
    stack = AdapterStack(networks)
    stack.add("one", {"unet.0": LoraFactors(torch.ones(2, 4), torch.ones(4, 2), 2.0)})
    stacked = networks["unet"](x)
    with raises_code("adapter.cannot_merge"):
        stack.add("two", weights)
    assert stack.names == ("one",) and torch.equal(networks["unet"](x), stacked)
    stack.clear()
    assert torch.equal(networks["unet"](x), before)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_entered_under_its_own_name(name: str) -> None:
    assert METHODS[name].name == name
    assert all(METHODS[name].endings.get(naming) for naming in ("peft", "kohya")) or name not in TRAINED
