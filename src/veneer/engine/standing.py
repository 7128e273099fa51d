"""Which class stands for which: a layer becomes another by its ``__class__`` alone, and itself again."""

from __future__ import annotations

from torch import nn

__all__ = ["is_prepared", "plain_class", "stand"]

_PLAIN: dict[type[nn.Module], type[nn.Module]] = {}


def stand(own: type[nn.Module], plain: type[nn.Module]) -> None:
    """Let one class stand for another."""
    _PLAIN[own] = plain


def plain_class(own: type[nn.Module]) -> type[nn.Module]:
    """What a class stands for: itself, if it is none of ours."""
    return _PLAIN.get(own, own)


def is_prepared(network: nn.Module) -> bool:
    """Whether a layer of it has a class that stands for its own."""
    return any(type(module) in _PLAIN for module in network.modules())
