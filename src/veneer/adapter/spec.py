"""What an adapter is: the plan of one (rank, alpha, targets) and its numbers (the factors A and B)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from veneer.config.schema import AdapterConfig, TextEncoderAdapterConfig
from veneer.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["AdapterSpec", "Factors", "LoraFactors", "check_weight", "specs_of"]


@dataclass(frozen=True)
class AdapterSpec:
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
    def from_peft(config: LoraConfig) -> AdapterSpec:
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
        return AdapterSpec(config.r, float(config.lora_alpha), tuple(sorted(targets)), config.lora_dropout)


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


Factors = Mapping[str, LoraFactors]
"""An adapter's numbers by the layer's full dotted path: ``unet.down_blocks.0.attentions.0...to_q``."""


def specs_of(config: AdapterConfig) -> dict[str, AdapterSpec]:
    """The adapters that a config asks for, by the prefix of their network."""
    specs = {"unet": _spec(config)}
    return specs if config.text_encoder is None else specs | {"text_encoder": _spec(config.text_encoder)}


def _spec(config: AdapterConfig | TextEncoderAdapterConfig) -> AdapterSpec:
    alpha = float(config.rank) if config.alpha is None else config.alpha
    return AdapterSpec(config.rank, alpha, config.target_modules, config.dropout)
