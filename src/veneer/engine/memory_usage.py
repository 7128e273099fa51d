"""How much memory is in use: what the bar and the trackers show beside the plan."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["InUse", "memory_in_use"]

_STATUS = Path("/proc/self/status")
_KIB_PEAK = re.compile(rb"^VmHWM:\s+(\d+) kB", re.MULTILINE)
_KIB_NOW = re.compile(rb"^VmRSS:\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True)
class InUse:
    """Memory, in bytes.

    Attributes:
        peak: the most since the process began, or since its peak was set back.
        now: at this moment; None where the system tells the peak alone.
    """

    peak: int
    now: int | None = None


def memory_in_use() -> InUse | None:
    """What PyTorch holds on the GPU, where it uses one, else what the process holds, libraries and all.

    It takes some ten microseconds. None where the system does not tell.
    """
    if torch.cuda.is_initialized() and torch.cuda.max_memory_allocated():
        return InUse(torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated())
    return _by_proc() or _by_getrusage()


def _by_proc() -> InUse | None:
    """Linux (proc(5), /proc/pid/status)."""
    try:
        status = _STATUS.read_bytes()
    except OSError:
        return None
    found = _KIB_PEAK.search(status), _KIB_NOW.search(status)
    peak, now = (None if each is None else int(each[1]) * 1024 for each in found)
    # the kernel brings its peak up to date now and then
    return None if peak is None or now is None else InUse(max(peak, now), now)


def _by_getrusage() -> InUse | None:
    """Other systems of Unix's kind; on Linux it would count what the parent process held before this one."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return InUse(peak if sys.platform == "darwin" else peak * 1024)
