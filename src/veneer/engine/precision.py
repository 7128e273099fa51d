"""The arithmetic of a step: dtype, autocast, loss scaling, and gradient checkpointing."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from veneer.errors import UserError

__all__ = ["Precision", "enable_gradient_checkpointing", "precision_of"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """Mixed precision of one device (Micikevicius et al. 2018): matrix products in ``dtype``, the adapter in float32.

    Attributes:
        dtype: the dtype of the products; the frozen weights may be stored in it, which halves their memory and changes
            no product.
        device: the device that the step runs on.
    """

    dtype: torch.dtype
    device: torch.device

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which matrix products are done in ``dtype``; in float32 it changes nothing."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self) -> torch.amp.GradScaler:
        """Return a scaler that keeps float16's small gradients from becoming zero; for other dtypes it does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def precision_of(name: str, device: torch.device) -> Precision:
    """Return the precision that ``train.precision`` names.

    Raises:
        UserError: the device does not have it.
    """
    if name == "float16" and device.type == "cpu":
        raise UserError(
            "float16 needs a GPU, and this run is on the CPU",
            code="engine.float16_on_cpu",
            where="train.precision",
            remedy="use bfloat16 or float32",
        )
    return Precision(_DTYPES[name], device)


def enable_gradient_checkpointing(model: Any) -> None:
    """Turn a model's own gradient checkpointing on (Chen et al. 2016).

    It is the non-reentrant one, which needs no gradient on a block's input: a frozen model has none there.
    """
    if hasattr(model, "enable_gradient_checkpointing"):
        model.enable_gradient_checkpointing()
        return
    # renamed within transformers 5, and the old name warns
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
