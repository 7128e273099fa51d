"""JSON out of strangers' files, parsed only where it cannot grow: one character may become an object of 60 bytes."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["parse_small_json"]

_MOST_VALUES = 300_000
"""Values that a JSON may have: some ten for each layer of the largest adapter, or each word of a large vocabulary."""


def parse_small_json(text: str) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: it is no JSON, is too deep, or has so many values that it is none of those that tools write.
    """
    if sum(map(text.count, ",[{")) > _MOST_VALUES:
        raise ValueError(f"it has more than {_MOST_VALUES:,} values")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is too deep") from None
