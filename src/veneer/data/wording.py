"""Words that several messages share."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["few"]


def few(items: Sequence[object]) -> str:
    """Join the first three, and say how many more there are."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(map(str, items[:3])) + more
