"""Pages of memory: on a large base, large tensors get pages of their own, and what holds them goes when they go.

glibc's malloc lets the heap serve ever larger blocks, up to 32 MiB, once blocks of that size were freed (its threshold
moves, malloc.c, ``__libc_free``). The heap shrinks only at its end, so holes between blocks that live stay held, and on
a full-size base these were up to a sixth of a training step and could not be foretold. A threshold that is set does not
move.

Pages that come from the system each time cost time. PyTorch asks for large pages, which cost less
(``THP_MEM_ALLOC_ENABLE``, c10/core/impl/alloc_cpu.cpp), where Linux gives them to those who ask. On a small base the
holes are small as well, and not worth the time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

__all__ = ["Thresholds", "ask", "has_asked", "set_for", "thresholds_for"]

_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_WISH = "THP_MEM_ALLOC_ENABLE"
_LARGE = 10**9
_OWN_PAGES, _FREE_AT_THE_END = 1024**2, 32 * 1024**2
_OUTSIDE = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")  # mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_AT_FIRST = 128 * 1024  # DEFAULT_MMAP_THRESHOLD_MIN, DEFAULT_TRIM_THRESHOLD


@dataclass(frozen=True)
class Thresholds:
    """How glibc's malloc serves this process, in bytes.

    Attributes:
        own_pages: from this size on a block has pages of its own.
        free_at_the_end: when more than this is free at the heap's end it shrinks.
        move: whether both rise with the blocks that are freed.
    """

    own_pages: int = _AT_FIRST
    free_at_the_end: int = _AT_FIRST
    move: bool = True


_SET = Thresholds(_OWN_PAGES, _FREE_AT_THE_END, move=False)
_asked = False


def ask() -> bool:
    """Ask for large pages, before PyTorch is loaded, which looks once; without them no threshold is set.

    Returns:
        False and nothing is changed where Linux gives none, the C library is not glibc, or its thresholds were set from
        outside.
    """
    global _asked
    if not _asked and _gives_large_pages() and not _is_set_from_outside() and _mallopt() is not None:
        os.environ.setdefault(_WISH, "1")
        _asked = True
    return _asked


def has_asked() -> bool:
    """Whether :func:`ask` did."""
    return _asked


def thresholds_for(weights: int) -> Thresholds:
    """What :func:`set_for` leaves this process with.

    Args:
        weights: of the base, in bytes of float32.
    """
    return _SET if _asked and weights >= _LARGE else Thresholds()


def set_for(weights: int) -> None:
    """Let blocks of 1 MiB and more have pages of their own, if the base is large and large pages were asked for.

    Args:
        weights: as above.
    """
    wanted, mallopt = thresholds_for(weights), _mallopt()
    if mallopt is not None and not wanted.move:
        mallopt(_M_MMAP_THRESHOLD, wanted.own_pages)
        mallopt(_M_TRIM_THRESHOLD, wanted.free_at_the_end)


def _gives_large_pages() -> bool:
    try:
        return "[never]" not in _LARGE_PAGES.read_text()
    except OSError:  # not Linux, or built without them
        return False


def _is_set_from_outside() -> bool:
    return "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name in os.environ for name in _OUTSIDE)


def _mallopt() -> Callable[[int, int], int] | None:
    try:
        return cast("Callable[[int, int], int]", ctypes.CDLL(None).mallopt)
    except (AttributeError, OSError, TypeError):  # another C library
        return None
