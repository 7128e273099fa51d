"""Compute steps with less memory; :func:`prepare` takes any network, in anyone's own script."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veneer.engine.attention import trusted_attention as trusted_attention
    from veneer.engine.memory_levels import MemoryLevel as MemoryLevel
    from veneer.engine.memory_levels import PreparedNetwork as PreparedNetwork
    from veneer.engine.memory_levels import prepare as prepare
    from veneer.engine.memory_levels import undo as undo
    from veneer.engine.quantized import quantize as quantize

__all__ = ["MemoryLevel", "PreparedNetwork", "prepare", "quantize", "trusted_attention", "undo"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for, for it needs diffusers and transformers (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'veneer.engine' has no attribute {name!r}")
    from veneer.engine import attention, memory_levels, quantized

    modules = {"quantize": quantized, "trusted_attention": attention}
    value = globals()[name] = getattr(modules.get(name, memory_levels), name)
    return value
