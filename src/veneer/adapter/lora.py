"""LoRA (Hu et al. 2021): the plan of an adapter, its factors A and B, and its delta W."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from veneer.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["LoraFactors", "LoraSpec", "delta_weight"]


@dataclass(frozen=True)
class LoraSpec:
    """The plan of one network's adapter: ``h = W0 x + (alpha/rank) B A x`` (Hu et al. 2021, section 4.1).

    Attributes:
        rank: rows of A and columns of B.
        alpha: numerator of the strength; the rank makes it 1.
        targets: names, or endings of dotted paths, of the layers to adapt.
        dropout: share of the adapter's inputs zeroed while training.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.rank < 1:
            raise UserError(f"the rank is {self.rank}", remedy="use 1 or more; 4 is usual")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"alpha is {self.alpha}", remedy="use a number above 0; the rank is usual")
        if not 0 <= self.dropout < 1:
            raise UserError(f"the dropout is {self.dropout}", remedy="use a share from 0 to below 1")
        if not self.targets or not all(self.targets):
            raise UserError("no target layers are named", remedy="name some, e.g. to_q to_k to_v to_out.0")

    def to_peft(self) -> LoraConfig:
        """The same plan for ``network.add_adapter`` and ``peft.get_peft_model``."""
        from peft import LoraConfig

        settings: dict[str, Any] = {"lora_alpha": int(self.alpha) if self.alpha == int(self.alpha) else self.alpha}
        settings |= {"r": self.rank, "lora_dropout": self.dropout, "init_lora_weights": "gaussian"}
        return LoraConfig(target_modules=list(self.targets), **settings)

    @staticmethod
    def from_peft(config: LoraConfig) -> LoraSpec:
        """The plan that a peft config states; a config that states more is refused, for it would train otherwise."""
        from peft import LoraConfig

        plain = LoraConfig()
        beyond = [f.name for f in fields(config) if getattr(config, f.name) != getattr(plain, f.name)]
        if unsupported := sorted(set(beyond) - _EXPRESSED):
            raise UserError(f"the peft config sets {', '.join(unsupported)}", remedy="only plain LoRA is trained")
        if (start := config.init_lora_weights) not in (True, "gaussian"):
            raise UserError(f"the peft config's init_lora_weights is {start!r}", remedy="use gaussian")
        targets = config.target_modules
        if targets is None or isinstance(targets, str):
            raise UserError(f"the peft config's target_modules is {targets!r}", remedy="give a list of layer names")
        return LoraSpec(config.r, float(config.lora_alpha), tuple(sorted(targets)), config.lora_dropout)


_PLAN = {"r", "lora_alpha", "target_modules", "lora_dropout", "init_lora_weights"}
_PROVENANCE = {"peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"}
_EXPRESSED = _PLAN | _PROVENANCE


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """One layer's adapter, delta W = (alpha/r) B A.

    Attributes:
        down: A, (r, in) of a linear layer or (r, in, kh, kw) of a convolution.
        up: B, (out, r) or (out, r, 1, 1).
        alpha: numerator of the strength.
    """

    down: Tensor
    up: Tensor
    alpha: float

    def __post_init__(self) -> None:
        """Refuse factors whose product is not a layer's weight."""
        fits = self.down.ndim == self.up.ndim and self.down.ndim in (2, 4)
        if not (fits and self.down.shape[0] == self.up.shape[1] >= 1 and self.up.shape[2:].numel() == 1):
            shapes = f"A {tuple(self.down.shape)} and B {tuple(self.up.shape)}"
            raise UserError(f"{shapes} are not the factors of a linear layer or a convolution")
        if not math.isfinite(self.alpha):
            raise UserError(f"alpha is {self.alpha}")

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What B A is multiplied by: alpha/r."""
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Of delta W: (out, in) or (out, in, kh, kw)."""
        return (self.up.shape[0], *self.down.shape[1:])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LoraFactors:
        """The same factors elsewhere."""
        return LoraFactors(self.down.to(device, dtype), self.up.to(device, dtype), self.alpha)


def delta_weight(factors: LoraFactors) -> Tensor:
    """Return delta W = (alpha/r) B A (Hu et al. 2021, section 4.1), (out, in) or (out, in, kh, kw).

    A convolution's B is 1 x 1, so the product over r is taken at each place of A's kernel.
    """
    product = factors.up.flatten(1) @ factors.down.flatten(1)
    return factors.scale * product.reshape(factors.shape)
