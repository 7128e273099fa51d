"""Scales beside tensors of 8-bit floats, by which these are to be multiplied, as ComfyUI's files have them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from veneer.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SCALE_ENDINGS", "scaled", "scales_of"]

SCALE_ENDINGS = (".scale_weight", ".weight_scale")
"""What is in the place of ``.weight`` in a scale's name: ComfyUI's older name, then its newer."""


def scales_of(names: Collection[str]) -> dict[str, str]:
    """Return the names of scales by the names of the tensors that they are of."""
    found = {}
    for name in names:
        for ending in SCALE_ENDINGS:
            if name.endswith(ending) and (tensor := f"{name.removesuffix(ending)}.weight") in names:
                found[tensor] = name
    return found


def scaled(tensor: Tensor, scale: Tensor, name: str) -> Tensor:
    """Return a tensor multiplied by its scale, which is one number or one for each row, in float32.

    Args:
        tensor: that the file has.
        scale: beside it.
        name: of the tensor, for the message.

    Raises:
        UserError: the scale has another shape.
    """
    if scale.numel() not in (1, tensor.shape[0] if tensor.ndim else 1):
        what = (
            f"the scale of {name} has the shape {tuple(scale.shape)!s:.80}, and the tensor {tuple(tensor.shape)!s:.80}"
        )
        raise UserError(what, code="weights.bad_scale", remedy="ask its maker for the adapter in bfloat16 or float32")
    factor = (
        scale.float().reshape(-1, *(1 for _ in tensor.shape[1:])) if scale.numel() > 1 else scale.float().reshape(())
    )
    return tensor.float() * factor
