"""The most memory that one piece of work takes, whatever came before it in the same process."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

from veneer.engine.memory_usage import memory_in_use

__all__ = ["PeakMemory", "begin_anew", "release_freed_memory"]

_RESET = Path("/proc/self/clear_refs")


class PeakMemory:
    """From its making on: on a GPU what PyTorch holds there, else what the process holds, libraries and all.

    What earlier work left behind is given back first, so that one piece of work is not charged for another.

    Args:
        device: that the work is done on.
    """

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._measures = True
        else:
            release_freed_memory()
            self._measures = begin_anew()

    def bytes(self) -> int | None:
        """The peak so far; None where the system does not tell."""
        in_use = memory_in_use() if self._measures else None
        return None if in_use is None else in_use.peak


def begin_anew() -> bool:
    """Set the process's peak back to what it holds (proc(5), /proc/pid/clear_refs); False where that cannot be."""
    try:
        _RESET.write_text("5")
    except OSError:  # not Linux, or not allowed: the only peak there is belongs to the process's whole life
        return False
    return True


def release_freed_memory() -> None:
    """Let the C library return to the system what was freed; glibc alone has a function for it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
