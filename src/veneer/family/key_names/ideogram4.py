"""Ideogram 4's own names.

Source: diffusers ``loaders/lora_conversion_utils.py``, ``_convert_non_diffusers_ideogram4_lora_to_diffusers``.
"""

from __future__ import annotations

from veneer.family.key_names.rules import Names, NameTable, Outputs, qkv

__all__ = ["IDEOGRAM4", "ideogram4_names"]

IDEOGRAM4 = NameTable(
    {"layers.N.attention.to_out.0": "layers.N.attention.o"}, {"layers.N.attention.qkv": qkv("layers.N.attention")}
)
"""The names of the transformer's layers."""


def ideogram4_names(outputs: Outputs) -> Names:
    """Return the native names of the transformer's layers by path."""
    return IDEOGRAM4.native_names(outputs)
