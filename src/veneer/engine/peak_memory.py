"""Measure the most memory that one piece of work takes, whatever came before it in the same process."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

from veneer.engine.memory_usage import read_memory_usage

__all__ = ["PeakMemory", "release_freed_memory", "reset_peak"]

_RESET = Path("/proc/self/clear_refs")


class PeakMemory:
    """The peak from its making on: what PyTorch holds on a GPU, else what the process holds, libraries included.

    What earlier work left behind is released first, so that one piece of work is not charged for another.

    Args:
        device: the device that the work is done on.
    """

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._is_measured = True
        else:
            release_freed_memory()
            self._is_measured = reset_peak()

    def bytes(self) -> int | None:
        """Return the peak so far; None if the system cannot reset it."""
        return read_memory_usage().peak if self._is_measured else None


def reset_peak() -> bool:
    """Reset the process's peak to what it holds now (proc(5), /proc/pid/clear_refs); False if that cannot be done."""
    try:
        _RESET.write_text("5")
    except OSError:  # not Linux, or not allowed: the only peak there is belongs to the process's whole life
        return False
    return True


def release_freed_memory() -> None:
    """Let the C library return freed memory to the system; glibc alone has a function for it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
