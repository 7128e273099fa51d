"""Which class stands for which: a layer becomes another by its ``__class__`` alone, and itself again."""

from __future__ import annotations

from torch import nn

__all__ = ["FORWARD", "is_prepared", "plain_class", "stand"]

FORWARD = "_veneer_forward"
"""Where a prepared network, not each of its layers, has what it does when it is called."""

_PLAIN: dict[type[nn.Module], type[nn.Module]] = {}


def stand(own: type[nn.Module], plain: type[nn.Module]) -> None:
    """Let one class stand for another."""
    _PLAIN[own] = plain


def plain_class(own: type[nn.Module]) -> type[nn.Module]:
    """What a class stands for: itself, if it is none of ours."""
    return _PLAIN.get(own, own)


def is_prepared(network: nn.Module) -> bool:
    """Whether it, or a part of it, is."""
    return any(type(module) in _PLAIN or FORWARD in vars(module) for module in network.modules())
