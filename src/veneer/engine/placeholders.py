"""What stands in place of a weight that is out of memory: NaN in its shape, with the memory of one number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["is_placeholder", "placeholder"]


def placeholder(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return NaN, or zeros of integers, in a shape; writing to it in place is an error of PyTorch's."""
    value = math.nan if dtype.is_floating_point else 0
    return torch.full((), value, dtype=dtype, device=device).expand(shape)


def is_placeholder(tensor: Tensor) -> bool:
    """Return whether a tensor stands in place of a weight that is out of memory."""
    return tensor.numel() > 1 and not any(tensor.stride())
