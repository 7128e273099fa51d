"""OFT as peft and OneTrainer have it: a layer's inputs are turned, by rotations kept as the entries above the diagonal.

Each block is a series in the skew Q that ends after some terms, or peft's Cayley transform (I - Q)(I + Q)^-1. A linear
layer becomes ``W0 R^T``; OneTrainer turns the kernels of a convolution the other way round, ``W0 R``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from veneer.adapter.part_names import PART_NAMES
from veneer.adapter.protocol import Method
from veneer.adapter.stored import StoredAdapter, bad_factors, check_parts, number_in
from veneer.errors import UserError

__all__ = ["OFT_OF_PEFT", "OftOfInputs"]

_TERMS = 5
"""Terms of OneTrainer's series."""
_SAME_SERIES_SINCE = (0, 18)
"""The release of peft since which its series is this one."""


@dataclass(frozen=True, eq=False)
class OftOfInputs(StoredAdapter):
    """One layer's OFT of its inputs: ``oft_R`` (n, size (size - 1) / 2), of one block for all where n is 1.

    The numbers are how many terms the series has, 0 for the Cayley transform; what Q is multiplied by; the longest that
    each Q may be, 0 for no limit; and whether it is OneTrainer's.
    """

    NUMBERS: ClassVar[tuple[str, ...]] = ("terms", "factor", "limit", "is_onetrainer")

    def check(self) -> None:
        """Refuse entries that are not those above a diagonal."""
        entries = self.tensors["oft_R"]
        if entries.ndim != 2 or self.size * (self.size - 1) // 2 != entries.shape[1]:
            raise bad_factors(f"rotations of shape {tuple(entries.shape)} are not those of an OFT")

    @property
    def method(self) -> Method:
        """The method: OFT, as peft has it."""
        return OFT_OF_PEFT

    @property
    def size(self) -> int:
        """Rows of a block."""
        return (1 + math.isqrt(1 + 8 * self.tensors["oft_R"].shape[-1])) // 2

    @property
    def told_shape(self) -> tuple[int, ...]:
        """(-1, in kh kw), or (-1, -1) where one block may be of all."""
        count = self.tensors["oft_R"].shape[0]
        return (-1, count * self.size) if count > 1 else (-1, -1)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it can change a weight of a shape; peft's convolution is another thing than its merged one."""
        if len(shape) < 2 or (len(shape) > 2 and not self.numbers["is_onetrainer"]):
            return False
        width, count = math.prod(shape[1:]), self.tensors["oft_R"].shape[0]
        return width % self.size == 0 if count == 1 else width == count * self.size

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """The size of a block."""
        return {"block_size": self.size}

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return delta W."""
        rotations = self._rotations().to(weight.dtype)
        grouped = weight.reshape(len(weight), -1, self.size)
        rotations = rotations.expand(grouped.shape[1], -1, -1)
        turned = torch.einsum("onk,nkc->onc" if weight.ndim > 2 else "onc,nkc->onk", grouped, rotations)
        return turned.reshape(weight.shape) - weight

    def _rotations(self) -> Tensor:
        """Return R (n, size, size)."""
        entries = self.tensors["oft_R"]
        wide = entries.to(torch.promote_types(entries.dtype, torch.float32)) * self.numbers["factor"]
        rows, columns = torch.triu_indices(self.size, self.size, 1, device=entries.device)
        upper = wide.new_zeros(len(wide), self.size, self.size)
        upper[:, rows, columns] = wide
        skew = _shortened(upper - upper.transpose(1, 2), self.numbers["limit"])
        identity = torch.eye(self.size, dtype=wide.dtype, device=wide.device)
        if not self.numbers["terms"]:
            rotations: Tensor = torch.linalg.solve(identity + skew, identity - skew, left=False)
            return rotations
        return _series(skew, identity, int(self.numbers["terms"]))


def _shortened(skew: Tensor, limit: float) -> Tensor:
    """Return each Q, those longer than the limit over the root of their number shortened to that (peft, ``coft``)."""
    if not limit:
        return skew
    longest = limit / math.sqrt(len(skew))
    length = torch.linalg.vector_norm(skew, dim=(1, 2), keepdim=True)
    return torch.where(length <= longest, skew, skew * (longest / length))


def _series(skew: Tensor, identity: Tensor, terms: int) -> Tensor:
    """Return I + 2 Q + 2 Q^2 + ... of so many terms, the last one once (peft and OneTrainer, ``_cayley_batch``)."""
    total = identity.expand_as(skew)
    if terms < 2:
        return total
    total, power = total + 2 * skew, skew
    if terms == 2:
        return total
    for _ in range(2, max(terms - 1, 3)):
        power = power @ skew
        total = total + 2 * power
    return total + power @ skew


def _from_file(parts: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> OftOfInputs:
    """Return the rotations that a file has: peft's with its config, or OneTrainer's, which has none.

    Raises:
        UserError: a part is missing, or a release of peft wrote it whose series was another one.
    """
    check_parts(parts, ["oft_R"])
    entries = parts["oft_R"]
    if settings is None or "oft_block_size" not in settings:
        has_factor = "scaled_oft" in parts and number_in("scaled_oft", parts["scaled_oft"].float()) != 0
        size = (1 + math.isqrt(1 + 8 * entries.shape[-1])) // 2 if entries.ndim else 2
        factor = 1 / (2 * math.sqrt(max(size - 1, 1))) if has_factor else 1.0
        return OftOfInputs({"oft_R": entries}, {"terms": _TERMS, "factor": factor, "limit": 0.0, "is_onetrainer": 1.0})
    has_series = bool(settings.get("use_cayley_neumann", True))
    if has_series and _release(settings) < _SAME_SERIES_SINCE:
        what = "its config is of a release of peft whose OFT was another one"
        raise UserError(what, code="weights.unsupported_method", remedy="merge it into the base with peft before 0.18")
    numbers = {"terms": float(settings["num_cayley_neumann_terms"]) if has_series else 0.0, "factor": 1.0}
    limit = float(settings["eps"]) if settings.get("coft") else 0.0
    return OftOfInputs({"oft_R": entries}, {**numbers, "limit": limit, "is_onetrainer": 0.0})


def _release(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the release of peft that a config is of; those before 0.18 do not tell."""
    found = re.match(r"(\d+)\.(\d+)", str(settings.get("peft_version", "")))
    return (int(found[1]), int(found[2])) if found else (0, 0)


OFT_OF_PEFT = Method(
    names=PART_NAMES["oft_of_peft"],
    is_additive=False,
    is_mergeable=True,
    spec=None,
    from_state=OftOfInputs.from_state,
    from_file=_from_file,
)
