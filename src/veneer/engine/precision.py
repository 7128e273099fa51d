"""Arithmetic of a step: dtype, autocast, loss scaling, and recomputation of blocks in the backward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from veneer.errors import UserError

__all__ = ["Precision", "precision_of", "recompute_blocks"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """Mixed precision of one device (Micikevicius et al. 2018): matrix products in ``dtype``, the adapter in float32.

    Attributes:
        dtype: of the products; the frozen weights may be stored in it (``family.to(device, precision.dtype)``), which
            halves their memory and changes no product.
        device: where the step runs.
    """

    dtype: torch.dtype
    device: torch.device

    def autocast(self) -> AbstractContextManager[object]:
        """A context in which matrix products are done in ``dtype``; in float32 it changes nothing."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps float16's small gradients from becoming zero; for other dtypes it passes everything through."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def precision_of(name: str, device: torch.device) -> Precision:
    """The precision that ``train.precision`` names, on ``device``; UserError where the device lacks it."""
    if name == "float16" and device.type == "cpu":
        raise UserError(
            "float16 needs a GPU, and this run is on the CPU",
            where="train.precision",
            remedy="use bfloat16 or float32",
        )
    return Precision(_DTYPES[name], device)


def recompute_blocks(model: Any) -> None:
    """Turn a model's own gradient checkpointing on (Chen et al. 2016).

    The non-reentrant form is asked for: it needs no gradient on a block's input, of which a frozen model has none.
    """
    if hasattr(model, "enable_gradient_checkpointing"):
        model.enable_gradient_checkpointing()
        return
    # renamed within transformers 5, and the old name warns
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
