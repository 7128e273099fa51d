"""Kinds of layers: what layers of different blocks that do the same are called together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

__all__ = ["by_kind", "kind_of"]

_Value = TypeVar("_Value")


def kind_of(path: str) -> str:
    """Return the kind of a layer: its path behind the last number of a block, such as ``attn1.to_q`` or ``conv1``.

    A number counts blocks if the level before it is a plural (``transformer_blocks.0``, ``resnets.1``, ``layers.11``);
    others are part of a layer's name (``to_out.0``, ``ff.net.0.proj``).
    """
    levels = path.split(".")
    counted = [place for place in range(1, len(levels)) if levels[place].isdigit() and levels[place - 1].endswith("s")]
    start = counted[-1] + 1 if counted and counted[-1] + 1 < len(levels) else 1
    return ".".join(levels[start:]) or path


def by_kind(values: Iterable[tuple[str, _Value]]) -> Mapping[str, list[_Value]]:
    """Return values of layers, given with the layers' paths, by the kinds of the layers in alphabetical order."""
    kinds: dict[str, list[_Value]] = {}
    for path, value in values:
        kinds.setdefault(kind_of(path), []).append(value)
    return dict(sorted(kinds.items()))
