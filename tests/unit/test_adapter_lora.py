"""The plan and the numbers of an adapter: what they refuse, and how the plan becomes peft's."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from veneer.adapter.lora import LoraFactors, LoraSpec
from veneer.errors import UserError


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rank": 0}, "the rank is 0"),
        ({"rank": -4}, "the rank is -4"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"dropout": 1.0}, "the dropout is 1.0"),
        ({"dropout": -0.1}, "the dropout is -0.1"),
        ({"targets": ()}, "no target layers"),
        ({"targets": ("to_q", "")}, "no target layers"),
    ],
)
def test_refuses_a_plan_that_cannot_train(change: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
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
    with pytest.raises(UserError, match=named):
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
    with pytest.raises(UserError, match="are not the factors"):
        LoraFactors(down, up, 1.0)


def test_refuses_an_alpha_that_is_no_number() -> None:
    with pytest.raises(UserError, match="alpha is inf"):
        LoraFactors(torch.ones(2, 3), torch.ones(5, 2), float("inf"))


def test_shape_is_of_delta() -> None:
    assert LoraFactors(torch.ones(2, 3), torch.ones(5, 2), 1.0).shape == (5, 3)
    convolution = LoraFactors(torch.ones(2, 3, 3, 1), torch.ones(5, 2, 1, 1), 1.0)
    assert (convolution.shape, convolution.rank, convolution.scale) == ((5, 3, 3, 1), 2, 0.5)
