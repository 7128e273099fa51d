"""Schedules and optimiser: parity with torch and diffusers; the learning rate and each field of OptimizerConfig act."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from veneer.config.adapter_config import AdapterConfig, TextEncoderAdapterConfig
from veneer.config.schema import RunConfig
from veneer.config.train_config import OptimizerConfig, TrainConfig
from veneer.train.optim import SCHEDULES, network_rates, optimizer_for, rate_factor, set_rates

DATA: dict[str, Any] = {"sources": [{"path": "pictures"}]}


def config_of(learning_rate: float = 1e-4, **optimizer: Any) -> RunConfig:
    train = TrainConfig(learning_rate=learning_rate, optimizer=OptimizerConfig(**optimizer))
    return RunConfig(base="bundled", data=DATA, train=train)  # type: ignore[arg-type]


def weight() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))


def stepped(config: RunConfig, gradient: tuple[float, ...] = (0.5, -0.25, 1e-8), steps: int = 3) -> torch.Tensor:
    parameter = weight()
    optimizer = optimizer_for(config, {"unet": [parameter]}, "unet")
    for _ in range(steps):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize(
    ("ours", "theirs"), [("constant", "constant_with_warmup"), ("linear", "linear"), ("cosine", "cosine")]
)
@pytest.mark.parametrize("warmup", [0, 7])
def test_rates_are_those_of_torchs_lambda_lr(ours: Any, theirs: str, warmup: int) -> None:
    """diffusers' schedules are LambdaLR over closed forms; each step's rate is compared."""
    config = TrainConfig(max_steps=50, lr_scheduler=ours, warmup_steps=warmup)
    optimizer = torch.optim.SGD([weight()], lr=0.3)
    reference = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=50)
    for step in range(50):
        assert 0.3 * rate_factor(config, step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-15)
        optimizer.step()
        reference.step()


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 500), st.data())
def test_a_factor_is_a_share_and_never_rises_after_the_warmup(schedule: Any, steps: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    config = TrainConfig(max_steps=steps, lr_scheduler=schedule, warmup_steps=warmup)
    factors = [rate_factor(config, step) for step in range(steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert factors[warmup] == 1.0


def test_adamw_is_torchs_own() -> None:
    parameter = weight()
    reference = torch.optim.AdamW([parameter], lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2)
    for _ in range(3):
        parameter.grad = torch.tensor([0.5, -0.25, 1e-8])
        reference.step()
    ours = stepped(config_of(learning_rate=0.1, betas=(0.8, 0.9), epsilon=1e-6, weight_decay=0.2))
    assert torch.equal(ours, parameter.detach())


def test_without_a_gradient_weight_decay_alone_shrinks() -> None:
    """Decoupled decay (Loshchilov and Hutter 2019): w <- w (1 - rate x decay) each step."""
    still = (0.0, 0.0, 0.0)
    shrunk = stepped(config_of(learning_rate=0.1, weight_decay=0.5), still, steps=2)
    torch.testing.assert_close(shrunk, weight().detach() * 0.95**2)
    assert torch.equal(stepped(config_of(learning_rate=0.1, weight_decay=0.0), still), weight().detach())


@pytest.mark.parametrize(
    "change", [{"learning_rate": 0.02}, {"betas": (0.5, 0.999)}, {"betas": (0.9, 0.5)}, {"epsilon": 1e-3}]
)
def test_each_field_changes_the_update(change: dict[str, Any]) -> None:
    varied = [(0.5, -0.25, 0.1), (0.1, 0.3, -0.2), (-0.4, 0.1, 0.6)]

    def path(config: RunConfig) -> torch.Tensor:
        parameter = weight()
        optimizer = optimizer_for(config, {"unet": [parameter]}, "unet")
        for gradient in varied:
            parameter.grad = torch.tensor(gradient)
            optimizer.step()
        return parameter.detach()

    assert not torch.equal(path(config_of(learning_rate=0.01)), path(config_of(**{"learning_rate": 0.01, **change})))


def test_the_text_encoder_has_a_rate_of_its_own() -> None:
    adapter = AdapterConfig(text_encoders={"text_encoder": TextEncoderAdapterConfig(learning_rate=3e-6)})
    config = RunConfig(base="bundled", data=DATA, adapter=adapter)  # type: ignore[arg-type]
    assert network_rates(config, "unet") == {"unet": 1e-4, "text_encoder": 3e-6}
    optimizer = optimizer_for(config, {"unet": [weight()], "text_encoder": [weight()]}, "unet")
    assert set_rates(optimizer, 0.5) == {"unet": 5e-5, "text_encoder": 1.5e-6}
    assert set_rates(optimizer, 1.0) == {"unet": 1e-4, "text_encoder": 3e-6}
