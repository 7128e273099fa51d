"""The base of a run, on the machine's GPU where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn

from veneer.adapter.registry import specs_of
from veneer.config.schema import RunConfig
from veneer.engine.quantization import NONE, form_named
from veneer.engine.quantized import form_of, quantize
from veneer.errors import UserError
from veneer.family.protocol import Family
from veneer.family.published import PUBLISHED
from veneer.family.registry import load_family
from veneer.malloc import set_for

__all__ = ["held_as", "hold", "load_base"]


def load_base(base: str, quantize: str = NONE, text_encoders: Sequence[str] = ()) -> Family:
    """Load a base model in float32, on the GPU if PyTorch finds one: ``bundled``, a folder, a file or a hub id.

    Args:
        base: which.
        quantize: what the denoiser's linear layers are held in, as ``train.quantization`` has it.
        text_encoders: names of those that are quantised too: those that learn. The others may leave while they do.

    Raises:
        UserError: there is none, or only its plan can be made, or the library that quantises is not installed.
    """
    if base in PUBLISHED and not Path(base).exists():
        raise _only_planned(base)
    if quantize != NONE:
        form_named(quantize).check()
    family = load_family(base)
    set_for(sum(4 * weight.numel() for network in family.networks.values() for weight in network.parameters()))
    device = torch.device("cuda") if torch.cuda.is_available() else None
    for name in (family.denoiser, *text_encoders):
        if name in family.networks:  # else it is refused where the adapter is planned
            _hold(family.networks[name], quantize, device)
    return family if device is None else family.to(device, torch.float32)


class _Held(TypedDict, total=False):
    quantize: str
    text_encoders: tuple[str, ...]


def held_as(config: RunConfig) -> _Held:
    """What a run asks of :func:`load_base` beside the base."""
    if config.train.quantization == NONE:
        return {}
    return {"quantize": config.train.quantization, "text_encoders": tuple(config.adapter.text_encoders)}


def hold(family: Family, config: RunConfig) -> None:
    """Quantise what a run wants quantised, where it is not yet."""
    for name in specs_of(config.adapter, family):
        _hold(family.networks[name], config.train.quantization, None)


def _hold(network: nn.Module, form: str, device: torch.device | None) -> None:
    if form_of(network) != form:
        quantize(network, form, device)


def _only_planned(base: str) -> UserError:
    published = PUBLISHED[base]
    what = f"names the architecture of {published.title}, which has no weights and can only be planned"
    if published.is_trainable:
        return UserError(what, where=base, remedy=f"give its weights: a folder, or base={published.hub}")
    return UserError(what, where=base, remedy="veneer plan tells what it would take; Veneer cannot train it yet")
