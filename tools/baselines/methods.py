"""Train a frozen UNet in several ways: all its weights, bottleneck adapters, LoRA; each leaves it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import veneer
from veneer.adapter.protocol import AdapterWeights
from veneer.rng import torch_generator

__all__ = ["LORA", "METHODS", "Bottleneck", "Method", "Taught", "Teach", "bottleneck", "full", "lora", "merged"]

RANK = 4
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
LORA = "LoRA"
Networks: TypeAlias = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Taught:
    """A UNet with something to train in it.

    Attributes:
        parameters: all that trains.
        weights: what may be merged into the weights afterwards; nothing, but for LoRA.
    """

    parameters: list[nn.Parameter]
    weights: Callable[[], AdapterWeights] = dict


Teach: TypeAlias = Callable[[Networks], AbstractContextManager[Taught]]
"""Makes a UNet ready to be taught; what is trained is gone on leaving."""


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        rates: learning rates to choose from.
        teach: as ``Teach``.
    """

    rates: tuple[float, ...]
    teach: Teach


@contextmanager
def full(networks: Networks) -> Iterator[Taught]:
    """Train every weight of the UNet."""
    unet = networks["unet"]
    before = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
    try:
        with _trained(unet, True):
            yield Taught(list(unet.parameters()))
    finally:
        with torch.no_grad():
            for name, parameter in unet.named_parameters():
                parameter.copy_(before[name])
                parameter.grad = None


@contextmanager
def _trained(network: nn.Module, trains: bool) -> Iterator[None]:
    """Let all parameters train, or none, and afterwards those that did before."""
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.requires_grad_(trains)
    try:
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


class Bottleneck(nn.Module):
    """``h + W_up f(W_down h)`` (Houlsby et al. 2019, section 2.1), W_up zero, so that it starts as nothing.

    Args:
        width: of the hidden states, D.
        narrow: of the bottleneck, m.
        name: the key of W_down, which is normal with deviation 1/sqrt(D).
    """

    def __init__(self, width: int, narrow: int, name: str) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, narrow), nn.Linear(narrow, width)
        start = torch.randn(narrow, width, generator=torch_generator(0, "bottleneck", name)) / width**0.5
        with torch.no_grad():
            self.down.weight.copy_(start)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Map (B, L, D) to the same shape."""
        changed: Tensor = hidden_BLD + self.up(nn.functional.gelu(self.down(hidden_BLD)))
        return changed


@contextmanager
def bottleneck(networks: Networks) -> Iterator[Taught]:
    """Put an adapter after each attention and each feed-forward, with as many parameters as LoRA's.

    A transformer block of width D has 8 matrices of LoRA on D x D (cross-attention's keys and values read the text, of
    another width), 16 r D parameters or so; three bottlenecks of width m have 6 m D: m = 8 r / 3.
    """
    unet = networks["unet"]
    narrow = round(8 * RANK / 3)
    adapters: list[Bottleneck] = []
    hooks: list[RemovableHandle] = []
    for name, block in unet.named_modules():
        if isinstance(block, BasicTransformerBlock):
            for place in ("attn1", "attn2", "ff"):
                adapter = Bottleneck(block.norm1.normalized_shape[0], narrow, f"{name}.{place}")
                hooks.append(getattr(block, place).register_forward_hook(_through(adapter)))
                adapters.append(adapter)
    try:
        with _trained(unet, False):
            yield Taught([parameter for adapter in adapters for parameter in adapter.parameters()])
    finally:
        for hook in hooks:
            hook.remove()


def _through(adapter: Bottleneck) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def hook(module: nn.Module, given: object, output: Tensor) -> Tensor:
        changed: Tensor = adapter(output)
        return changed

    return hook


@contextmanager
def lora(networks: Networks) -> Iterator[Taught]:
    """Put LoRA on the attention projections (Hu et al. 2021)."""
    injection = veneer.inject(networks, {"unet": veneer.LoraSpec(RANK, float(RANK), TARGETS)}, seed=0)
    try:
        yield Taught(injection.parameters(), injection.weights)
    finally:
        injection.eject()


@contextmanager
def merged(networks: Networks) -> Iterator[Taught]:
    """Merge LoRA into the weights (Hu et al. 2021, section 4.1)."""
    with lora(networks) as taught:
        factors = taught.weights()
    merging = veneer.merge(networks, [(factors, 1.0)])
    try:
        yield Taught([])
    finally:
        merging.undo()


METHODS: Mapping[str, Method] = {
    "full fine-tuning": Method((3e-5, 1e-4, 3e-4), full),
    "bottleneck adapters": Method((1e-3, 3e-3, 1e-2), bottleneck),
    LORA: Method((7e-4, 2e-3, 6e-3), lora),
}
