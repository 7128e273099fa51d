"""Injection by peft: it wraps the layers of a network, for any of its methods."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from veneer.adapter.peft_library import PeftConfig, inject_adapter_in_model, without_quantized_layers

__all__ = ["ADAPTER_NAME", "parameter_in", "wrap_with_peft"]

ADAPTER_NAME = "default"
"""peft's name of the adapter; its helpers take this one when none is given."""


def wrap_with_peft(network: nn.Module, config: PeftConfig, paths: Sequence[str]) -> None:
    """Let peft wrap these layers of a network, and no others.

    Args:
        network: changed in place.
        config: the adapter's, of any of peft's methods; its ``target_modules`` are written over.
        paths: of the layers within the network.
    """
    # a pattern, for peft takes the entries of a list as endings
    vars(config)["target_modules"] = "|".join(re.escape(path) for path in paths)
    # peft draws numbers that are replaced afterwards
    with torch.random.fork_rng(devices=[]), without_quantized_layers():
        inject_adapter_in_model(config, network, ADAPTER_NAME)


def parameter_in(modules: nn.ModuleDict) -> nn.Parameter:
    """Return the weight that one of a wrapped layer's parts has for the adapter, such as of ``lora_A``."""
    weight = modules[ADAPTER_NAME].weight
    assert isinstance(weight, nn.Parameter)
    return weight
