"""LoHa (Hyeon-Woo et al. 2021, FedPara; LyCORIS): ``delta W = (alpha/r) (A1 B1) * (A2 B2)``, entry by entry."""

from __future__ import annotations

import math
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
    without_core,
)

__all__ = ["LOHA", "LohaFactors"]

_FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_CORES = ("hada_t1", "hada_t2")
_AT_ONCE = 2**18  # numbers of delta W that are made at a time where only its size is wanted


@dataclass(frozen=True, eq=False)
class LohaFactors(StoredAdapter):
    """One layer's LoHa.

    ``hada_w1_a`` (out, r) and ``hada_w1_b`` (r, in) or (r, in kh kw), and ``hada_w2_a``, ``hada_w2_b`` alike. With the
    cores ``hada_t1`` and ``hada_t2`` (r, r, kh, kw) of a Tucker decomposition, (r, out) and (r, in).
    """

    NUMBERS: ClassVar[tuple[str, ...]] = ("alpha",)

    def check(self) -> None:
        """Refuse factors that do not fit together."""
        first, second = (self._half_shape(half) for half in "12")
        ranks = {tuple(self.tensors[f"hada_w{half}_b"].shape[:1]) for half in "12"}
        if first is None or first != second or len(ranks) > 1:
            shapes = ", ".join(f"{part} {tuple(self.tensors[part].shape)}" for part in self.tensors)
            raise bad_factors(f"{shapes} are not the factors of a LoHa")

    def _half_shape(self, half: str) -> tuple[int, ...] | None:
        """Return the shape of a half of the product; None: its factors do not fit together."""
        a, b, core = (self.tensors.get(name) for name in (f"hada_w{half}_a", f"hada_w{half}_b", f"hada_t{half}"))
        assert a is not None and b is not None
        return product_shape(a, b, core)

    @property
    def method(self) -> Method:
        """The method: LoHa."""
        return LOHA

    @property
    def told_shape(self) -> tuple[int, ...]:
        """(out, in), (out, in kh kw) or (out, in, kh, kw)."""
        shape = self._half_shape("1")
        assert shape is not None
        return shape

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it can change a weight of a shape."""
        return len(shape) > 1 and same_but_kernel(self.told_shape, shape)

    @property
    def rank(self) -> int:
        """r."""
        return self.tensors["hada_w1_b"].shape[0]

    @property
    def scale(self) -> float:
        """The factor alpha/r."""
        return self.numbers["alpha"] / self.rank

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """Rank and alpha."""
        return {"rank": self.rank, "alpha": self.numbers["alpha"]}

    @staticmethod
    def from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> LohaFactors:
        """Return the factors that a file has, of LyCORIS or of peft.

        Raises:
            UserError: a part is missing or does not fit, or the config contradicts the parts.
        """
        check_parts(parts, _FACTORS if not any(core in parts for core in _CORES) else (*_FACTORS, *_CORES))
        tensors = {part: parts[part] for part in (*_FACTORS, *_CORES) if part in parts}
        rank = parts["hada_w1_b"].shape[0] if parts["hada_w1_b"].ndim else 1
        return LohaFactors(tensors, {"alpha": alpha_in(parts, settings, rank)})

    def file_parts(self, naming: str) -> dict[str, Tensor]:
        """Return the tensors of a file by part; peft has alpha in its config."""
        parts = super().file_parts(naming)
        return {part: tensor for part, tensor in parts.items() if naming == "kohya" or part != "alpha"}

    def peft_settings(self) -> dict[str, Any]:
        """Return rank and alpha, and of a convolution with a kernel whether it has cores."""
        has_kernel = math.prod(self.shape[2:]) > 1
        kind = {"use_effective_conv2d": "hada_t1" in self.tensors} if has_kernel else {}
        return {"r": self.rank, "alpha": self.numbers["alpha"], **kind}

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W; the base's weight does not matter."""
        return self._delta().reshape(self.shape)

    def squared_norm(self, weight: Tensor | None = None) -> float:
        """Return |delta W|^2; no more of delta W is made at a time than some megabytes.

        With ranks as low as those of most files it is that of a product of rank r^2: row o of it is the products of
        all numbers of row o of A1 with all of row o of A2.
        """
        wide = self.to(self.tensors["hada_w1_a"].device, torch.float64)
        halves = [wide._plain_half(half) for half in "12"]
        (a1, b1), (a2, b2) = halves
        if self.rank**3 * (len(a1) + b1.shape[1]) < len(a1) * b1.shape[1]:
            square = float((_products(a1.T, a2.T) * _products(b1, b2)).sum())
        else:
            step = max(1, _AT_ONCE // b1.shape[1])
            pieces = zip(a1.split(step), a2.split(step), strict=True)
            square = sum(float(((one @ b1) * (two @ b2)).square().sum()) for one, two in pieces)
        return self.scale**2 * max(square, 0.0)

    def _plain_half(self, half: str) -> tuple[Tensor, Tensor]:
        """Return A (out, r) and B (r, all else) of a half, with the core in B where there is one."""
        a, b, core = (self.tensors.get(name) for name in (f"hada_w{half}_a", f"hada_w{half}_b", f"hada_t{half}"))
        assert a is not None and b is not None
        return (a, b.flatten(1)) if core is None else without_core(core, a, b)

    def _delta(self) -> Tensor:
        return self._half("1") * self._half("2") * self.scale

    def _half(self, half: str) -> Tensor:
        """Return A B, or A (core B) of a Tucker decomposition (LyCORIS, ``HadaWeight`` and ``HadaWeightTucker``)."""
        a, b, core = (self.tensors.get(name) for name in (f"hada_w{half}_a", f"hada_w{half}_b", f"hada_t{half}"))
        assert a is not None and b is not None
        return product(a, b, core)


def _products(one: Tensor, two: Tensor) -> Tensor:
    """Return the inner products (r r, r r) of the products entry by entry of each row of one with each of the other."""
    rows = one.shape[0] * two.shape[0]
    step = max(1, _AT_ONCE // rows)
    total = one.new_zeros(rows, rows)
    for some, others in zip(one.split(step, 1), two.split(step, 1), strict=True):
        product = (some[:, None] * others[None]).flatten(0, 1)
        total += product @ product.T
    return total


LOHA = Method(
    names=PART_NAMES["loha"],
    is_additive=True,
    is_mergeable=True,
    spec=None,
    from_state=LohaFactors.from_state,
    from_file=LohaFactors.from_file,
    row_parts={"hada_w1_a": "hada_w1_b", "hada_w2_a": "hada_w2_b"},
)
