"""Ideogram 4's own names.

Source: diffusers ``loaders/lora_conversion_utils.py``, ``_convert_non_diffusers_ideogram4_lora_to_diffusers``.
"""

from __future__ import annotations

from veneer.family.key_names.rules import Names, Outputs, native_names, qkv

__all__ = ["ideogram4_names"]


def ideogram4_names(outputs: Outputs) -> Names:
    """Return the native names of the transformer's layers by path."""
    names = {"layers.N.attention.to_out.0": "layers.N.attention.o"}
    return native_names(outputs, names, {"layers.N.attention.qkv": qkv("layers.N.attention")})
