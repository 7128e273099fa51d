"""GLoRA (Chavan et al. 2023; LyCORIS): ``delta W = (alpha/r) (W0 A1 A2 + B1 B2)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.protocol import Method
from veneer.adapter.stored import StoredAdapter, alpha_in, bad_factors, check_parts, same_but_kernel

__all__ = ["GLORA", "GloraFactors"]

_PARTS = ("glora_a1", "glora_a2", "glora_b1", "glora_b2")
_CORE = "glora_bm"


@dataclass(frozen=True, eq=False)
class GloraFactors(StoredAdapter):
    """One layer's GLoRA.

    A1 (in, r) and A2 (r, in), of convolutions with a kernel of 1 x 1; B1 (out, r) and B2 (r, in) or (r, in, kh, kw), or
    with a core (r, r, kh, kw) of a Tucker decomposition between B1 and B2.
    """

    NUMBERS: ClassVar[tuple[str, ...]] = ("alpha",)

    def check(self) -> None:
        """Refuse factors that do not fit together."""
        a1, a2, b1, b2 = (self.tensors[part] for part in _PARTS)
        core = self.tensors.get(_CORE)
        thin = (a1, a2, b1) if core is None else (a1, a2, b1, b2)
        fits = all(each.ndim >= 2 for each in (a1, a2, b1, b2)) and all(each.shape[2:].numel() == 1 for each in thin)
        if not fits or len({a1.shape[1], a2.shape[0], b1.shape[1], b2.shape[0]}) > 1 or not self._inputs_agree():
            shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in self.tensors.items())
            raise bad_factors(f"{shapes} are not the factors of a GLoRA")

    def _inputs_agree(self) -> bool:
        a1, a2, _, b2 = (self.tensors[part] for part in _PARTS)
        core = self.tensors.get(_CORE)
        fits = core is None or (core.ndim == 4 and core.shape[0] == core.shape[1] == b2.shape[0])
        return fits and a1.shape[0] == a2.shape[1] == b2.shape[1]

    @property
    def method(self) -> Method:
        """The method: GLoRA."""
        return GLORA

    @property
    def told_shape(self) -> tuple[int, ...]:
        """(out, in) or (out, in, kh, kw)."""
        b1, b2 = self.tensors["glora_b1"], self.tensors["glora_b2"]
        kernel = self.tensors.get(_CORE, b2).shape[2:]
        return (b1.shape[0], b2.shape[1], *kernel)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it can change a weight of a shape."""
        return len(shape) > 1 and self.told_shape[1] == shape[1] and same_but_kernel(self.told_shape, shape)

    @property
    def rank(self) -> int:
        """r."""
        return self.tensors["glora_a2"].shape[0]

    @property
    def scale(self) -> float:
        """The factor alpha/r."""
        return self.numbers["alpha"] / self.rank

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """Rank and alpha."""
        return {"rank": self.rank, "alpha": self.numbers["alpha"]}

    @property
    def is_untrained(self) -> bool:
        """True where both products are zero."""
        return not (self.tensors["glora_a2"].any() or self.tensors["glora_b2"].any())

    @staticmethod
    def from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> GloraFactors:
        """Return the factors that a file has.

        LyCORIS before 2.0 had A1 and A2, and B1 and B2, the other way round; that shows in their shapes.

        Raises:
            UserError: a part is missing or does not fit.
        """
        check_parts(parts, _PARTS)
        tensors = {part: parts[part] for part in (*_PARTS, _CORE) if part in parts}
        if _is_reversed(tensors):
            pairs = (("glora_a1", "glora_a2"), ("glora_b1", "glora_b2"))
            tensors |= {part: parts[other] for pair in pairs for part, other in (pair, pair[::-1])}
        rank = tensors["glora_a2"].shape[0] if tensors["glora_a2"].ndim else 1
        return GloraFactors(tensors, {"alpha": alpha_in(parts, None, rank)})

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W (LyCORIS, ``_glora_weight``)."""
        a1, a2, b1, b2 = (self.tensors[part] for part in _PARTS)
        first = torch.einsum("oi...,ij,jk->ok...", weight, a1.flatten(1), a2.flatten(1))
        core = self.tensors.get(_CORE)
        if core is None:
            second = b1.flatten(1) @ b2.flatten(1)
        else:
            second = torch.einsum("mn...,im,nj->ij...", core, b1.flatten(1), b2.flatten(1))
        return (first + second.reshape(weight.shape)) * self.scale


def _is_reversed(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the ranks are where older files have them, and not where newer ones do."""
    a1, a2, b1, b2 = (tensors[part] for part in _PARTS)
    if any(each.ndim < 2 for each in (a1, a2, b1, b2)):
        return False
    older = len({b2.shape[1], b1.shape[0], a1.shape[0], a2.shape[1]}) == 1
    newer = len({b2.shape[0], b1.shape[1], a1.shape[1], a2.shape[0]}) == 1
    return older and not newer


GLORA = Method(
    names=PART_NAMES["glora"],
    is_additive=False,
    is_mergeable=True,
    spec=None,
    from_state=GloraFactors.from_state,
    from_file=GloraFactors.from_file,
)
