"""The memory of this machine, and of this process."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from veneer.engine.memory_usage import memory_in_use
from veneer.engine.peak_memory import PeakMemory

__all__ = ["free_memory", "process_memory"]

_MEMINFO, _CONTROL_GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def process_memory() -> int:
    """Return the bytes that this process holds after it has released what it can; 0 if the system does not say."""
    PeakMemory(torch.device("cpu"))
    used = memory_in_use()
    return 0 if used is None else used.now or used.peak


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that a device can give to this process, those that it holds already included.

    On the CPU that is what the kernel can give without swapping (proc(5), ``MemAvailable``), within the limit of a
    container. None if the system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    used = memory_in_use()
    own = 0 if used is None else used.now or 0
    left = [size + own for size in (_available(), _left_in_control_group()) if size is not None]
    return min(left, default=None)


def _available() -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if match is None else int(match[1]) * 1024


def _left_in_control_group() -> int | None:
    """Return what the limit of a control group (version 2) leaves, cached files counted as free."""
    try:
        limit, used = ((_CONTROL_GROUP / name).read_text() for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)", (_CONTROL_GROUP / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        return None
    if not limit.strip().isdigit():
        return None  # "max": there is none
    return int(limit) - int(used) + (int(cached[1]) if cached else 0)
