"""Layers that are summed up together: those of different blocks that do the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from veneer.weights.formats.places import place_of

__all__ = ["by_kind"]

_Value = TypeVar("_Value")


def by_kind(values: Iterable[tuple[str, _Value]]) -> dict[str, list[_Value]]:
    """Return what is known of layers by their kinds, such as ``attn1.to_q``, in alphabetical order.

    Args:
        values: each layer's path, as diffusers names it, network first, and what is known of it.
    """
    kinds: dict[str, list[_Value]] = {}
    for path, value in values:
        kinds.setdefault(place_of(path, "diffusers").kind, []).append(value)
    return dict(sorted(kinds.items()))
