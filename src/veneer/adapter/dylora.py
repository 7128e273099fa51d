"""DyLoRA (Valipour et al. 2023) as LyCORIS keeps it while it trains: a LoRA whose ranks lie in blocks.

LyCORIS and kohya write it as the LoRA that it is; what is read here is a module's own state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from veneer.adapter.lora import LORA, LoraFactors
from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.protocol import Method
from veneer.adapter.stored import bad_factors

__all__ = ["DYLORA"]


def _from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> LoraFactors:
    """Return the LoRA whose A and B are the blocks side by side.

    Raises:
        UserError: a block is missing or does not fit.
    """
    down, up = _blocks("down_list", parts), _blocks("up_list", parts)
    ranks = [(tuple(a.shape), tuple(b.shape)) for a, b in zip(down, up, strict=False)]
    if len(down) != len(up) or not down or any(each.ndim != 2 for each in (*down, *up)):
        raise bad_factors(f"{len(down)} blocks of A and {len(up)} of B, {ranks}, are not those of a DyLoRA")
    if len({each.shape[1] for each in down}) > 1 or len({each.shape[0] for each in up}) > 1:
        raise bad_factors(f"the blocks {ranks} are not of one layer")
    alpha = {"alpha": parts["alpha"]} if "alpha" in parts else {}
    return LoraFactors.from_file({"down": torch.cat(down), "up": torch.cat(up, dim=1), **alpha}, None)


def _blocks(name: str, parts: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the blocks of a list in their order.

    Raises:
        UserError: one is missing.
    """
    places = {
        int(found[1]): tensor for part, tensor in parts.items() if (found := re.fullmatch(rf"{name}\.(\d+)", part))
    }
    if sorted(places) != list(range(len(places))):
        raise bad_factors(f"of its {name} a block is missing")
    return [places[place] for place in sorted(places)]


DYLORA = Method(
    names=PART_NAMES["dylora"],
    is_additive=True,
    is_mergeable=True,
    spec=None,
    from_state=LORA.from_state,
    from_file=_from_file,
    row_parts=LORA.row_parts,
    is_low_rank=True,
)
