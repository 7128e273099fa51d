"""Which class stands for which: a layer becomes another by its ``__class__`` alone, and itself again."""

from __future__ import annotations

from torch import nn

__all__ = ["FORWARD", "STANDS_FOR", "is_prepared", "plain_base", "plain_class"]

FORWARD = "_veneer_forward"
"""Where a prepared network, not each of its layers, has what it does when it is called."""

STANDS_FOR = "_veneer_stands_for"
"""The attribute of one of our classes that has the plain class; classes made of ours by others inherit it."""


def plain_class(own: type[nn.Module]) -> type[nn.Module]:
    """What a class stands for: itself, if it is none of ours, be it made of one."""
    plain: type[nn.Module] = vars(own).get(STANDS_FOR, own)
    return plain


def plain_base(kind: type[nn.Module]) -> type[nn.Module]:
    """The same, of classes that others made of ours as well."""
    plain: type[nn.Module] = getattr(kind, STANDS_FOR, kind)
    return plain


def is_prepared(network: nn.Module) -> bool:
    """Whether it, or a part of it, is."""
    return any(STANDS_FOR in vars(type(module)) or FORWARD in vars(module) for module in network.modules())
