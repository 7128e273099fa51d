"""Tensors of an adapter's file that are no part of the adapter that is read: each named, with why.

Who reads a file says whether it takes it without them; nothing is left out that nobody is told of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from veneer.errors import UserError
from veneer.weights.header import shown

__all__ = ["LeftOut", "leave_out", "left_out_by_name"]


@dataclass(frozen=True)
class LeftOut:
    """Tensors that are left out for one reason.

    Attributes:
        names: of the tensors, or of the layers that they belong to.
        why: what they are, and what of that makes no difference to the adapter or cannot be read.
    """

    names: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        """Return one sentence for a user."""
        count = len(self.names)
        are = (
            f"{shown(self.names[0])} is" if count == 1 else f"{count} of its names, such as {shown(self.names[0])}, are"
        )
        return f"{are} left out: {self.why}"


_KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"^bundle_emb\.",
        "embeddings of new words, which OneTrainer puts beside an adapter; they are loaded on their own",
    ),
    (r"(?:^|[._])position_ids$", "places of tokens, which are the same in all text encoders"),
    (r"\.comfy_quant$|\.(?:scale_input|input_scale)$", "how a program rounds a layer's input, which changes no weight"),
)
"""Patterns of names that are known and of no layer's adapter, each with what they are."""


def left_out_by_name(names: Iterable[str]) -> list[LeftOut]:
    """Return which of these names are known to be of no layer's adapter, by what they are."""
    all_names = sorted(names)
    found = [(tuple(name for name in all_names if re.search(pattern, name)), why) for pattern, why in _KNOWN]
    return [LeftOut(own, why) for own, why in found if own]


def leave_out(found: Iterable[LeftOut], taken: list[LeftOut] | None) -> None:
    """Record what is left out of a file.

    Args:
        found: what is to be left out.
        taken: by whoever takes the file without it; None: nobody does.

    Raises:
        UserError: there is something, and nobody takes the file without it.
    """
    found = list(found)
    if taken is not None:
        taken.extend(found)
    elif found:
        remedy = "in Python give load a list as left_out, in which it says so; veneer adapter convert writes it without"
        raise UserError(f"has more than can be read: {found[0]}", code="weights.left_out", remedy=remedy)
