"""(IA)^3 (Liu et al. 2022): each output of a layer, or each of its inputs, is multiplied by a number.

LyCORIS has 1 less than the number and leaves the bias as it is; peft has the number itself, and multiplies the bias of
an output by it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.protocol import Method
from veneer.adapter.stored import StoredAdapter, bad_factors, check_parts, number_in
from veneer.errors import UserError

__all__ = ["IA3", "IA3_OF_PEFT", "Ia3OfPeft", "Ia3Vector"]


@dataclass(frozen=True, eq=False)
class Ia3Vector(StoredAdapter):
    """One layer's (IA)^3 of LyCORIS: ``ia3_weight``, w of (size,) or (1, size, 1, 1), and whether it is of inputs."""

    NUMBERS: ClassVar[tuple[str, ...]] = ("on_input",)
    PART: ClassVar[str] = "ia3_weight"

    def check(self) -> None:
        """Refuse what is no vector."""
        vector = self.tensors[self.PART]
        if vector.numel() != max(vector.shape, default=0):
            raise bad_factors(f"numbers of shape {tuple(vector.shape)} are not those of an (IA)^3")

    @property
    def method(self) -> Method:
        """The method: (IA)^3."""
        return IA3

    @property
    def axis(self) -> int:
        """Axis of the weight that the numbers are of: 0, its outputs, or 1, its inputs."""
        return int(self.numbers["on_input"] != 0)

    @property
    def told_shape(self) -> tuple[int, ...]:
        """(out,) or (-1, in)."""
        count = self.tensors[self.PART].numel()
        return (-1, count) if self.axis else (count,)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it can change a weight of a shape."""
        return len(shape) > 1 and shape[self.axis] == self.told_shape[self.axis]

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """None."""
        return {}

    def file_parts(self, naming: str) -> dict[str, Tensor]:
        """Return the tensors of a file by part; whether it is of inputs is a whole number."""
        parts = super().file_parts(naming)
        return {**parts, "on_input": parts["on_input"].long()}

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W = w W0, by outputs or by inputs (LyCORIS, ``_ia3_weight``)."""
        return weight * self.along(weight.ndim)

    def along(self, axes: int) -> Tensor:
        """Return the numbers in a shape that broadcasts to a weight of so many axes."""
        shape = [1] * axes
        shape[self.axis] = -1
        return self.tensors[self.PART].reshape(shape)


@dataclass(frozen=True, eq=False)
class Ia3OfPeft(Ia3Vector):
    """One layer's (IA)^3 of peft: ``ia3_l``, l of (out, 1), or of inputs (1, in); of convolutions (1, size, 1, 1)."""

    PART: ClassVar[str] = "ia3_l"

    @property
    def method(self) -> Method:
        """The method: (IA)^3, as peft has it."""
        return IA3_OF_PEFT

    @property
    def is_untrained(self) -> bool:
        """True where all numbers are 1."""
        return bool((self.tensors["ia3_l"] == 1).all())

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W = (l - 1) W0, by outputs or by inputs."""
        return weight * (self.along(weight.ndim) - 1)

    def delta_bias(self, bias: Tensor) -> Tensor | None:
        """Return (l - 1) b of outputs; inputs' numbers leave the bias as it is."""
        return None if self.axis else bias * (self.tensors["ia3_l"].flatten() - 1)


def _from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> Ia3Vector:
    check_parts(parts, ["ia3_weight", "on_input"])
    return Ia3Vector({"ia3_weight": parts["ia3_weight"]}, {"on_input": number_in("on_input", parts["on_input"])})


def _from_file_of_peft(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> Ia3OfPeft:
    """Return the numbers that a file has; of a convolution only the config can say whether they are of inputs.

    Raises:
        UserError: there is none, or it says that some layers' are of inputs, which only peft's patterns tell apart.
    """
    vector = parts["ia3_l"]
    if vector.ndim == 4 and (settings is None or settings.get("feedforward_modules")):
        what = "its numbers may be of the convolution's inputs or of its outputs: peft tells them by patterns of names"
        raise UserError(what, code="weights.unsupported_method", remedy="merge it into the base with peft")
    return Ia3OfPeft({"ia3_l": vector}, {"on_input": float(vector.ndim == 2 and vector.shape[0] == 1)})


IA3 = Method(
    names=PART_NAMES["ia3"],
    is_additive=False,
    is_mergeable=True,
    spec=None,
    from_state=Ia3Vector.from_state,
    from_file=_from_file,
)
IA3_OF_PEFT = Method(
    names=PART_NAMES["ia3_of_peft"],
    is_additive=False,
    is_mergeable=True,
    spec=None,
    from_state=Ia3OfPeft.from_state,
    from_file=_from_file_of_peft,
)
