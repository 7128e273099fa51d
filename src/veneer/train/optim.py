"""Make the optimiser and schedule its learning rate, which is a function of the config and the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from veneer.config.schema import RunConfig
from veneer.config.train_config import OptimizerConfig, TrainConfig

__all__ = ["OPTIMIZERS", "SCHEDULES", "network_rates", "optimizer_for", "rate_factor", "set_rates"]

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Make AdamW (Loshchilov and Hutter 2019, algorithm 2); on a GPU as one kernel for all parameters."""
    is_fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
    decay = config.weight_decay
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.epsilon, weight_decay=decay, fused=is_fused or None)


OPTIMIZERS: Mapping[str, Callable[[Groups, OptimizerConfig], torch.optim.Optimizer]] = MappingProxyType(
    {"adamw": _adamw}
)
"""Optimisers by the name the config gives them."""


def _constant(progress: float) -> float:
    return 1.0


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    """Fall along half a wave (Loshchilov and Hutter 2017, eq. 5 with eta_min = 0 and one period)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {"constant": _constant, "linear": _linear, "cosine": _cosine}
)
"""Share of the rate by progress after the warm-up, 0 at its end and 1 when training is over."""


def rate_factor(config: TrainConfig, step: int) -> float:
    """Return the factor of the learning rate in ``step``, counted from 0.

    It is step/warmup in the warm-up, so the first step's update is zero while its moments are kept, and falls towards
    zero at ``config.max_steps``, the first step not done; as ``diffusers.optimization`` has it.
    """
    if step < config.warmup_steps:
        return step / config.warmup_steps
    return SCHEDULES[config.lr_scheduler]((step - config.warmup_steps) / (config.max_steps - config.warmup_steps))


def network_rates(config: RunConfig, denoiser: str) -> dict[str, float]:
    """Return the learning rate of each network's adapter, by the network's name.

    Args:
        config: the run.
        denoiser: the name of its base's denoiser.
    """
    rates = {name: part.learning_rate for name, part in config.adapter.text_encoders.items()}
    return {denoiser: config.train.learning_rate} | rates


def optimizer_for(
    config: RunConfig, parameters: Mapping[str, Iterable[nn.Parameter]], denoiser: str
) -> torch.optim.Optimizer:
    """Make the config's optimiser, one group a network, over ``parameters`` by network name and over nothing else."""
    rates = network_rates(config, denoiser)
    groups: Groups = [
        {"params": list(own), "name": network, "lr": rates[network], "initial_lr": rates[network]}
        for network, own in parameters.items()
    ]
    return OPTIMIZERS[config.train.optimizer.name](groups, config.train.optimizer)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set each group's rate to ``factor`` of its initial one; return the rates by network."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
