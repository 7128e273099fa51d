"""Class swap: a layer becomes one of another class, and itself again, by a change of its ``__class__`` alone."""

from __future__ import annotations

from torch import nn

__all__ = ["FORWARD", "ORIGINAL_CLASS", "inherited_original_class", "is_prepared", "original_class"]

FORWARD = "_veneer_forward"
"""The attribute of a prepared network, though not of its layers, that holds the ``forward`` it was given."""

ORIGINAL_CLASS = "_veneer_original_class"
"""The attribute of one of our classes that holds the class it replaces; classes derived of ours inherit it."""


def original_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class that one of ours replaces; any other class as it is, be it derived of one of ours."""
    original: type[nn.Module] = vars(cls).get(ORIGINAL_CLASS, cls)
    return original


def inherited_original_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class that one of ours replaces, also for classes that others derived of ours."""
    original: type[nn.Module] = getattr(cls, ORIGINAL_CLASS, cls)
    return original


def is_prepared(network: nn.Module) -> bool:
    """Tell whether a network, or a part of it, is prepared."""
    return any(ORIGINAL_CLASS in vars(type(module)) or FORWARD in vars(module) for module in network.modules())
