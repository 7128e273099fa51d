"""Read how much memory is in use, and how much is left.

psutil reads what a process holds and what the machine has left. Two things it does not read are read here: the peak of
a process, which Linux keeps and can reset, and the limit of a container.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil
import torch

__all__ = ["MemoryUsage", "available_memory", "read_memory_usage"]

_STATUS, _CONTROL_GROUP = Path("/proc/self/status"), Path("/sys/fs/cgroup")
_PEAK_KIB = re.compile(rb"^VmHWM:\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True)
class MemoryUsage:
    """Memory in use, in bytes.

    Attributes:
        peak: the most since the process began, or since its peak was reset.
        current: now.
    """

    peak: int
    current: int


def read_memory_usage() -> MemoryUsage:
    """Return what PyTorch holds on the GPU if it uses one, else what the process holds, libraries included.

    It takes some ten microseconds.
    """
    if torch.cuda.is_initialized() and torch.cuda.max_memory_allocated():
        return MemoryUsage(torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated())
    current = int(_process(os.getpid()).memory_info().rss)
    return MemoryUsage(max(_read_peak(), current), current)  # the kernel updates its peak now and then


def available_memory() -> int:
    """Return the bytes that this machine can still give without swapping, within the limit of a container."""
    available, left = int(psutil.virtual_memory().available), _left_in_control_group()
    return available if left is None else min(available, left)


@lru_cache(maxsize=1)
def _process(pid: int) -> psutil.Process:
    """Return this process; a fork has another number."""
    return psutil.Process(pid)


def _read_peak() -> int:
    """Return the process's peak: from Linux's proc(5), from Windows through psutil, elsewhere by getrusage(2)."""
    try:
        match = _PEAK_KIB.search(_STATUS.read_bytes())
    except OSError:
        match = None
    if match is not None:  # getrusage would count what the parent process held before this one
        return int(match[1]) * 1024
    if sys.platform == "win32":
        return int(_process(os.getpid()).memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _left_in_control_group() -> int | None:
    """Return what the limit of a control group (version 2) leaves, cached files counted as free; None: no limit."""
    try:
        limit, used = ((_CONTROL_GROUP / name).read_text() for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)", (_CONTROL_GROUP / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        return None
    if not limit.strip().isdigit():
        return None  # "max": there is none
    return int(limit) - int(used) + (int(cached[1]) if cached else 0)
