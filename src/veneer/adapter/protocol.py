"""What an adapter is to whoever does not know its method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from veneer.errors import UserError

if TYPE_CHECKING:
    from veneer.adapter.lora import LoraFactors

__all__ = ["AdapterWeights", "check_weight"]

AdapterWeights: TypeAlias = "Mapping[str, LoraFactors]"
"""An adapter's numbers by the layer's full dotted path: ``unet.down_blocks.0.attentions.0...to_q``."""


def check_weight(weight: object, adapter: str) -> None:
    """Refuse a strength that is no finite number.

    Args:
        weight: what the adapter's delta W is multiplied by.
        adapter: names it in the message.

    Raises:
        UserError: it is none.
    """
    if not isinstance(weight, (Real, Tensor)) or not math.isfinite(weight):
        raise UserError(f"the weight of {adapter} is {weight!r}", remedy="use a number; 1 is what it was trained at")
