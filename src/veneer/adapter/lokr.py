"""LoKr (LyCORIS): ``delta W = s W1 (x) W2``, a Kronecker product, each half a matrix or a product of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.protocol import Method
from veneer.adapter.stored import (
    StoredAdapter,
    alpha_in,
    bad_factors,
    check_parts,
    product,
    product_shape,
    same_but_kernel,
    squared_product,
    without_core,
)

__all__ = ["LOKR", "LokrFactors"]

_PARTS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


@dataclass(frozen=True, eq=False)
class LokrFactors(StoredAdapter):
    """One layer's LoKr.

    W1 is ``lokr_w1`` (a, c), or ``lokr_w1_a`` (a, r) times ``lokr_w1_b`` (r, c). W2 is ``lokr_w2`` (b, d) or (b, d, kh,
    kw), or ``lokr_w2_a`` (b, r) times ``lokr_w2_b`` (r, d) or (r, d kh kw), or with the core ``lokr_t2`` (r, r, kh, kw)
    of a Tucker decomposition of (r, b) and (r, d). The weight is (a b, c d) or (a b, c d, kh, kw).

    The strength s is alpha/r. Where both halves are matrices there is no r; then s is alpha itself, which is 1 in all
    files of LyCORIS.
    """

    NUMBERS: ClassVar[tuple[str, ...]] = ("alpha",)

    def check(self) -> None:
        """Refuse factors that do not fit together."""
        halves = (self._first_shape(), self._second_shape())
        ranks = {tuple(self.tensors[part].shape[:1]) for part in ("lokr_w1_b", "lokr_w2_b") if part in self.tensors}
        if None in halves or len(ranks) > 1:
            shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in self.tensors.items())
            raise bad_factors(f"{shapes} are not the factors of a LoKr")

    def _first_shape(self) -> tuple[int, ...] | None:
        """Return the shape of W1; None: its factors do not fit together."""
        whole, a, b = (self.tensors.get(part) for part in ("lokr_w1", "lokr_w1_a", "lokr_w1_b"))
        if whole is not None:
            return tuple(whole.shape) if whole.ndim == 2 else None
        assert a is not None and b is not None
        return (a.shape[0], b.shape[1]) if a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] else None

    def _second_shape(self) -> tuple[int, ...] | None:
        """Return the shape of W2; None: its factors do not fit together."""
        whole, a, b, core = (self.tensors.get(part) for part in ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"))
        if whole is not None:
            return tuple(whole.shape) if whole.ndim in (2, 4) else None
        assert a is not None and b is not None
        return product_shape(a, b, core)

    @property
    def method(self) -> Method:
        """The method: LoKr."""
        return LOKR

    @property
    def told_shape(self) -> tuple[int, ...]:
        """(out, in), (out, in kh kw) or (out, in, kh, kw)."""
        first, second = self._first_shape(), self._second_shape()
        assert first is not None and second is not None
        return (first[0] * second[0], first[1] * second[1], *second[2:])

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it can change a weight of a shape."""
        return len(shape) > 1 and same_but_kernel(self.told_shape, shape)

    @property
    def rank(self) -> int | None:
        """r; None: both halves are matrices."""
        return _rank(self.tensors)

    @property
    def scale(self) -> float:
        """The strength s."""
        return self.numbers["alpha"] / (self.rank or 1)

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """Rank, where it has one, and alpha."""
        rank = {} if self.rank is None else {"rank": float(self.rank)}
        return {**rank, "alpha": self.numbers["alpha"]}

    @staticmethod
    def from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> LokrFactors:
        """Return the factors that a file has, of LyCORIS or of peft.

        Where both halves are matrices, LyCORIS' readers and ComfyUI take 1 whatever alpha is, and it may be anything;
        peft takes alpha/r of its config.

        Raises:
            UserError: a part is missing or does not fit, or the config contradicts the parts.
        """
        for half in ("lokr_w1", "lokr_w2"):
            factors = (f"{half}_a", f"{half}_b", f"lokr_t{half[-1]}")
            check_parts(parts, [half] if half in parts else factors[:2])
            if half in parts and any(part in parts for part in factors):
                raise bad_factors(f"has {half} both as a matrix and as a product")
        tensors = {part: parts[part] for part in _PARTS if part in parts}
        if (rank := _rank(tensors)) is not None:
            return LokrFactors(tensors, {"alpha": alpha_in(parts, settings, rank)})
        told = settings["alpha"] / settings["r"] if settings is not None and "alpha" in settings else 1.0
        scalar = {part: parts[part] for part in ("scalar",) if part in parts}
        return LokrFactors(tensors, {"alpha": told * alpha_in(scalar, None, 1)})

    def file_parts(self, naming: str) -> dict[str, Tensor]:
        """Return the tensors of a file; where both halves are matrices, the strength is in W1, for readers take 1."""
        if self.rank is not None or self.scale == 1:
            return super().file_parts(naming)
        first = (self.tensors["lokr_w1"].double() * self.scale).to(self.tensors["lokr_w1"].dtype)
        return {**self.tensors, "lokr_w1": first, "alpha": torch.tensor(1.0)}

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W; the base's weight does not matter."""
        first, second = self._first(), self._second()
        product = torch.einsum("ac,bd...->abcd...", first, second)  # torch.kron fails on some strides
        return (product * self.scale).reshape(self.shape)

    def squared_norm(self, weight: Tensor | None = None) -> float:
        """Return |delta W|^2 = s^2 |W1|^2 |W2|^2; no half that is a product is made."""
        wide = self.to(next(iter(self.tensors.values())).device, torch.float64).tensors
        return self.scale**2 * _squared(wide, "lokr_w1") * _squared(wide, "lokr_w2")

    def _first(self) -> Tensor:
        """Return W1."""
        whole = self.tensors.get("lokr_w1")
        return self.tensors["lokr_w1_a"] @ self.tensors["lokr_w1_b"] if whole is None else whole

    def _second(self) -> Tensor:
        """Return W2 (LyCORIS, ``_kron_weight``)."""
        if (whole := self.tensors.get("lokr_w2")) is not None:
            return whole
        return product(self.tensors["lokr_w2_a"], self.tensors["lokr_w2_b"], self.tensors.get("lokr_t2"))


def _squared(tensors: Mapping[str, Tensor], half: str) -> float:
    """Return |W|^2 of a half."""
    if half in tensors:
        return float(tensors[half].square().sum())
    a, b = tensors[f"{half}_a"], tensors[f"{half}_b"].flatten(1)
    if half == "lokr_w2" and "lokr_t2" in tensors:
        a, b = without_core(tensors["lokr_t2"], a, b)
    return squared_product(a, b)


def _rank(tensors: Mapping[str, Tensor]) -> int | None:
    """Return r, which both halves have alike; it is the first axis of the second factor, with a core and without."""
    factor = tensors.get("lokr_w1_b", tensors.get("lokr_w2_b"))
    return None if factor is None or factor.ndim == 0 else factor.shape[0]


LOKR = Method(
    names=PART_NAMES["lokr"],
    is_additive=True,
    is_mergeable=True,
    spec=None,
    from_state=LokrFactors.from_state,
    from_file=LokrFactors.from_file,
    row_parts={"lokr_w1": None, "lokr_w1_a": None},
    has_row_blocks=True,
)
