"""Thresholds of glibc's malloc: on a large base, large tensors get pages of their own, which are returned when freed.

glibc's malloc serves ever larger blocks from the heap, up to 32 MiB, once blocks of that size were freed (its threshold
is dynamic, malloc.c, ``__libc_free``). The heap shrinks only at its end, so holes between live blocks stay held; on a
full-size base these were up to a sixth of a training step's memory, and could not be predicted. A threshold that is set
is not dynamic any more.

Pages that come from the system each time cost time. PyTorch can request large pages, which cost less
(``THP_MEM_ALLOC_ENABLE``, c10/core/impl/alloc_cpu.cpp), where Linux gives them on request. On a small base the holes
are small as well, and not worth the time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

__all__ = ["Thresholds", "large_pages_requested", "request_large_pages", "set_thresholds", "thresholds_for"]

_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_REQUEST = "THP_MEM_ALLOC_ENABLE"
_LARGE_BASE = 10**9
_OVERRIDES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")  # mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_DEFAULT = 128 * 1024  # DEFAULT_MMAP_THRESHOLD_MIN, DEFAULT_TRIM_THRESHOLD


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of glibc's malloc in this process, in bytes.

    Attributes:
        mmap: a block of this size or larger gets pages of its own.
        trim: the heap shrinks when more than this is free at its end.
        dynamic: whether both rise with the blocks that are freed.
    """

    mmap: int = _DEFAULT
    trim: int = _DEFAULT
    dynamic: bool = True


_FOR_LARGE_BASES = Thresholds(mmap=1024**2, trim=32 * 1024**2, dynamic=False)
_requested = False


def request_large_pages() -> bool:
    """Request large pages; before PyTorch is loaded, which looks once. Without them no threshold is set.

    Returns:
        Whether they were requested: not where Linux gives none, the C library is not glibc, or the user has set its
        thresholds; nothing is changed then.
    """
    global _requested
    if not _requested and _gives_large_pages() and not _has_overrides() and _mallopt() is not None:
        os.environ.setdefault(_REQUEST, "1")
        _requested = True
    return _requested


def large_pages_requested() -> bool:
    """Return whether :func:`request_large_pages` requested them."""
    return _requested


def thresholds_for(base_bytes: int) -> Thresholds:
    """Return the thresholds of this process after :func:`set_thresholds`.

    Args:
        base_bytes: the size of the base's weights in float32.
    """
    return _FOR_LARGE_BASES if _requested and base_bytes >= _LARGE_BASE else Thresholds()


def set_thresholds(base_bytes: int) -> None:
    """Give blocks of 1 MiB and more pages of their own, if the base is large and large pages were requested.

    Args:
        base_bytes: the size of the base's weights in float32.
    """
    thresholds, mallopt = thresholds_for(base_bytes), _mallopt()
    if mallopt is not None and not thresholds.dynamic:
        mallopt(_M_MMAP_THRESHOLD, thresholds.mmap)
        mallopt(_M_TRIM_THRESHOLD, thresholds.trim)


def _gives_large_pages() -> bool:
    try:
        return "[never]" not in _LARGE_PAGES.read_text()
    except OSError:  # not Linux, or built without them
        return False


def _has_overrides() -> bool:
    return "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name in os.environ for name in _OVERRIDES)


def _mallopt() -> Callable[[int, int], int] | None:
    try:
        return cast("Callable[[int, int], int]", ctypes.CDLL(None).mallopt)
    except (AttributeError, OSError, TypeError):  # another C library
        return None
