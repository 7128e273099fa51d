"""Pages of memory: large tensors get pages of their own, and large ones, and what holds them goes when they go.

glibc's malloc lets the heap serve ever larger blocks, up to 32 MiB, once blocks of that size were freed (its threshold
moves, malloc.c, ``__libc_free``). The heap shrinks only at its end, so holes between blocks that live stay held: more
than a tenth of a training step on a full-size base, and nobody can foretell it. A threshold that is set does not move.
Pages that come from the system each time cost time, of which PyTorch saves nearly all by asking for large pages
(``THP_MEM_ALLOC_ENABLE``, c10/core/impl/alloc_cpu.cpp), where Linux gives them to those who ask.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Thresholds", "engage", "thresholds"]

_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_WISH = "THP_MEM_ALLOC_ENABLE"
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


_now = Thresholds()


def thresholds() -> Thresholds:
    """Those of this process: glibc's own unless :func:`engage` set others."""
    return _now


def engage() -> bool:
    """Let blocks of 1 MiB and more have pages of their own; before PyTorch is loaded, which looks once.

    Returns:
        False and nothing is changed where Linux gives no large pages, the C library is not glibc, or its thresholds
        were set from outside.
    """
    global _now
    if _now.move and _gives_large_pages() and not _is_set_from_outside() and _set(_OWN_PAGES, _FREE_AT_THE_END):
        os.environ.setdefault(_WISH, "1")
        _now = Thresholds(_OWN_PAGES, _FREE_AT_THE_END, move=False)
    return not _now.move


def _gives_large_pages() -> bool:
    try:
        return "[never]" not in _LARGE_PAGES.read_text()
    except OSError:  # not Linux, or built without them
        return False


def _is_set_from_outside() -> bool:
    return "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name in os.environ for name in _OUTSIDE)


def _set(own_pages: int, free_at_the_end: int) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, own_pages) and mallopt(_M_TRIM_THRESHOLD, free_at_the_end))
