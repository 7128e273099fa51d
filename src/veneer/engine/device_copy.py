"""Copy what a step needs to its device, without making the program wait for a GPU's copies."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device.

    To a GPU it goes through pinned memory: the copy is queued behind the GPU's work, in its order, and the program goes
    on. PyTorch keeps the pinned memory until the copy is done. On the CPU, where there is nothing to copy, it is the
    tensor itself.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return _pinned(tensor).to(device, non_blocking=True)


def _pinned(tensor: Tensor) -> Tensor:
    """Return a tensor in memory that the GPU reads by itself; where the system pins no more, where it is."""
    try:
        return tensor.pin_memory()
    except RuntimeError:
        return tensor
