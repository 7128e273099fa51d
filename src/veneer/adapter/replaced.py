"""A weight in place of the base's: Black Forest Labs' control LoRAs have the norms of queries and keys as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.protocol import Method
from veneer.adapter.stored import StoredAdapter

__all__ = ["REPLACED", "ReplacedWeight"]

_PART = "set_weight"


@dataclass(frozen=True, eq=False)
class ReplacedWeight(StoredAdapter):
    """One layer's new weight: ``set_weight``, of the shape of the weight."""

    def check(self) -> None:
        """Refuse nothing: a weight of any shape may be a layer's."""

    @property
    def method(self) -> Method:
        """The method: a replaced weight."""
        return REPLACED

    @property
    def told_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.tensors[_PART].shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it can stand in place of a weight of a shape."""
        return shape == self.told_shape

    @property
    def is_untrained(self) -> bool:
        """False: only the base tells."""
        return False

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return the new weight less the base's."""
        return self.tensors[_PART] - weight

    @staticmethod
    def from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> ReplacedWeight:
        """Return the weight that a file has."""
        return ReplacedWeight({_PART: parts[_PART]}, {})


REPLACED = Method(
    names=PART_NAMES["replaced"],
    is_additive=False,
    is_mergeable=True,
    spec=None,
    from_state=ReplacedWeight.from_state,
    from_file=ReplacedWeight.from_file,
    row_parts={_PART: None},
)
