"""Where in a network a layer is, told by a file's name for it: its network, block and kind."""

from __future__ import annotations

import re
from dataclasses import dataclass

from veneer.weights.formats.names import NETWORKS, readings

__all__ = ["LayerPlace", "place_of"]

_BLOCK = re.compile(r"(.*?(?:^|[._])\d+)(?:[._]|$)")
"""A path up to its first number."""
_ABOVE_KIND = re.compile(r"^.*(?:[a-z]s|block|layer)(?:[._]\d+)+[._](?=.)")
"""A path down to the last thing of which there are several by number."""


@dataclass(frozen=True)
class LayerPlace:
    """Where a layer is.

    Attributes:
        network: of the layer; None: only the base can tell.
        block: that it is in: its path up to the first number, such as ``up_blocks.1``; all of it where there is none.
        kind: that it is of: what its path has behind the blocks, such as ``attn1.to_q``.
    """

    network: str | None
    block: str
    kind: str


def place_of(layer: str, format_name: str) -> LayerPlace:
    """Return where a layer is.

    Args:
        layer: the file's name for it.
        format_name: the format whose names are like it.
    """
    inner = list(readings(layer))[-1]
    told = inner.network if format_name == "kohya" else layer.partition(".")[0]
    found = _BLOCK.match(inner.path)
    network = told if told in NETWORKS else None
    return LayerPlace(network, found.group(1) if found else inner.path, _ABOVE_KIND.sub("", inner.path))
