"""Qwen-Image's own names, which are diffusers': its code was published there."""

from __future__ import annotations

from veneer.family.key_names.rules import Names, Outputs

__all__ = ["qwen_image_names"]


def qwen_image_names(outputs: Outputs) -> Names:
    """Return no names: the transformer's layers are called as in diffusers."""
    return {}
