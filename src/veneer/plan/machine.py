"""The memory of this machine, and of this process."""

from __future__ import annotations

import torch

from veneer.engine.memory_usage import available_memory, read_memory_usage
from veneer.engine.peak_memory import PeakMemory

__all__ = ["free_memory", "process_memory"]


def process_memory() -> int:
    """Return the bytes that this process holds after it has released what it can.

    Its peak is reset, so that a later reading is not of what was released now.
    """
    PeakMemory(torch.device("cpu"))
    return read_memory_usage().current


def free_memory(device: torch.device) -> int:
    """Return the bytes that a device can give to this process, those that it holds already included.

    On the CPU that is what the kernel can give without swapping, within the limit of a container.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    return available_memory() + read_memory_usage().current
