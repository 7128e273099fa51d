"""How much memory a machine has, and what this process holds of it."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from veneer.engine.memory_usage import memory_in_use
from veneer.engine.peak_memory import PeakMemory

__all__ = ["free_memory", "process_memory"]

_MEMINFO, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def process_memory() -> int:
    """Bytes that this process holds, after it has given back what it can; 0 where the system does not tell."""
    PeakMemory(torch.device("cpu"))
    used = memory_in_use()
    return 0 if used is None else used.now or used.peak


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device can give to this process, with those that it has given already; None: it does not tell.

    On the CPU it is what the kernel reckons it could give without swapping (proc(5), ``MemAvailable``), and no more
    than a container's own limit leaves.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    used = memory_in_use()
    own = 0 if used is None else used.now or 0
    left = [size + own for size in (_available(), _left_in_group()) if size is not None]
    return min(left, default=None)


def _available() -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024


def _left_in_group() -> int | None:
    """What is left of the limit of a control group (version 2), where there is one; cached files do not count."""
    try:
        limit, used = ((_GROUP / name).read_text() for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)", (_GROUP / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        return None
    if not limit.strip().isdigit():
        return None  # "max": there is none
    return int(limit) - int(used) + (int(cached[1]) if cached else 0)
