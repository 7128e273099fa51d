"""The plan and the numbers of an adapter: what they refuse, and how the plan becomes peft's."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from tests.errors import raises_code
from veneer.adapter.lora import LoraFactors, LoraSpec


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"rank": 0}, "adapter.bad_rank", "the rank is 0; use 1 or more"),
        ({"rank": -4}, "adapter.bad_rank", ""),
        ({"alpha": 0.0}, "adapter.bad_alpha", "alpha is 0.0; use a number above 0"),
        ({"alpha": -1.0}, "adapter.bad_alpha", ""),
        ({"alpha": float("nan")}, "adapter.bad_alpha", ""),
        ({"dropout": 1.0}, "adapter.bad_dropout", "the dropout is 1.0; use a share from 0 to below 1"),
        ({"dropout": -0.1}, "adapter.bad_dropout", ""),
        ({"targets": ()}, "adapter.no_targets", "no target layers are named"),
        ({"targets": ("to_q", "")}, "adapter.no_targets", ""),
    ],
)
def test_refuses_a_plan_that_cannot_train(change: dict[str, object], code: str, words: str) -> None:
    with raises_code(code, words):
        LoraSpec(**{"rank": 4, "alpha": 4.0, "targets": ("to_q",)} | change)  # type: ignore[arg-type]


def test_peft_and_back() -> None:
    spec = LoraSpec(rank=8, alpha=2.5, targets=("to_k", "to_q"), dropout=0.25)
    config = spec.to_peft()
    assert (config.r, config.lora_alpha, config.target_modules) == (8, 2.5, {"to_q", "to_k"})
    assert (config.lora_dropout, config.init_lora_weights) == (0.25, "gaussian")
    assert LoraSpec.from_peft(config) == spec


def test_whole_alpha_is_an_int_to_peft() -> None:
    assert isinstance(LoraSpec(rank=8, alpha=4.0, targets=("to_k",)).to_peft().lora_alpha, int)


@pytest.mark.parametrize(
    ("beyond", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"x": 2}}, "rank_pattern"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"target_modules": ".*to_q"}, "target_modules"),
    ],
)
def test_refuses_a_peft_config_that_says_more(beyond: dict[str, object], named: str) -> None:
    with raises_code("adapter.unsupported_peft_config", named):
        LoraSpec.from_peft(LoraConfig(**{"target_modules": ["to_q"]} | beyond))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (torch.ones(2, 3), torch.ones(5, 4)),
        (torch.ones(2, 3), torch.ones(5, 2, 1, 1)),
        (torch.ones(2, 3, 3, 3), torch.ones(5, 2)),
        (torch.ones(2, 3, 3, 3), torch.ones(5, 2, 3, 3)),
        (torch.ones(2), torch.ones(2)),
        (torch.ones(0, 3), torch.ones(5, 0)),
        (torch.ones(2, 3, 3), torch.ones(5, 2, 1)),
    ],
)
def test_refuses_factors_that_do_not_fit(down: Tensor, up: Tensor) -> None:
    with raises_code("adapter.bad_factors", "are not the factors of a linear layer or a convolution"):
        LoraFactors(down, up, 1.0)


def test_refuses_an_alpha_that_is_no_number() -> None:
    with raises_code("adapter.bad_alpha"):
        LoraFactors(torch.ones(2, 3), torch.ones(5, 2), float("inf"))


def test_shape_is_of_delta() -> None:
    assert LoraFactors(torch.ones(2, 3), torch.ones(5, 2), 1.0).shape == (5, 3)
    convolution = LoraFactors(torch.ones(2, 3, 3, 1), torch.ones(5, 2, 1, 1), 1.0)
    assert (convolution.shape, convolution.rank, convolution.scale) == ((5, 3, 3, 1), 2, 0.5)
