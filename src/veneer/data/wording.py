"""Words that several messages share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["few"]

T = TypeVar("T")


def few(items: Sequence[T], tell: Callable[[T], str] = str) -> str:
    """Join the first three, each as it is told, and say how many more there are."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(map(tell, items[:3])) + more
