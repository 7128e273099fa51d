"""glibc's allocator: a process holds more than its live blocks, because freed ones leave holes in the heap.

PyTorch takes memory for the CPU with ``posix_memalign``, and glibc's malloc (malloc/malloc.c, release 2.36) serves it
from the smallest hole that is large enough; else, from a threshold on, with pages of its own (mmap), which go back to
the system when they are freed; else the heap grows at its top. A freed block joins the holes beside it. The heap
shrinks only at its top, and only when more than another threshold is free there. Unless they were set
(:mod:`veneer.malloc`), both thresholds move: whenever a block with pages of its own is freed, up to 32 MiB large,
blocks of that size go to the heap from then on (malloc.c, ``__libc_free``). So after a first step the activations of
the following ones are in the heap, and what lies in holes between them stays held.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from veneer.malloc import Thresholds

__all__ = ["Heap"]

_ALIGNMENT, _HEADER, _LEAST = 16, 8, 32  # MALLOC_ALIGNMENT, SIZE_SZ, MINSIZE of 64 bits
_MEMALIGN = 64  # c10::gAlignment
_PAGE = 4096
_PAD = 128 * 1024  # M_TOP_PAD
_MMAP_MOST = 32 * 1024 * 1024  # DEFAULT_MMAP_THRESHOLD_MAX


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


class Heap:
    """glibc's main arena without its small bins, since the blocks of tensors are large.

    Args:
        thresholds: at the beginning.
    """

    def __init__(self, thresholds: Thresholds) -> None:
        self._mmap_threshold, self._trim_threshold = thresholds.mmap, thresholds.trim
        self._most = _MMAP_MOST if thresholds.dynamic else 0
        self._mapped = 0
        self._top = self._end = 0  # where the heap's last, free block begins, and the heap's end
        self._holes: list[tuple[int, int]] = []  # (size, start), sorted
        self._by_start: dict[int, int] = {}  # start of a hole -> size
        self._by_end: dict[int, int] = {}  # end of a hole -> start

    @property
    def resident(self) -> int:
        """Bytes that the process holds for it now."""
        return self._end + self._mapped

    def allocate(self, size: int) -> tuple[int | None, int]:
        """Allocate a block; return its start, or None if it has pages of its own, and its size."""
        need = max(_LEAST, -(-(size + _HEADER) // _ALIGNMENT) * _ALIGNMENT)
        requested = need + _MEMALIGN + _LEAST  # memalign takes more and gives the rest back
        start = self._from_hole(need, requested)
        if start is not None:
            return start, need
        if self._end - self._top < requested + _LEAST and requested >= self._mmap_threshold:
            pages = _pages(requested + _HEADER)
            self._mapped += pages
            return None, pages
        return self._from_top(need, requested), need

    def _from_hole(self, need: int, requested: int) -> int | None:
        place = bisect_left(self._holes, (requested, 0))
        if place == len(self._holes):
            return None
        size, start = self._holes[place]
        self._remove(start, size)
        if size - need >= _LEAST:
            self._add(start + need, size - need)
        return start

    def _from_top(self, need: int, requested: int) -> int:
        if self._end - self._top < requested + _LEAST:
            self._end = _pages(self._top + requested + _LEAST + _PAD)
        start, self._top = self._top, self._top + need
        return start

    def free(self, start: int | None, size: int) -> None:
        """Free a block, given as :meth:`allocate` returned it."""
        if start is None:
            self._mapped -= size
            if self._mmap_threshold < size <= self._most:
                self._mmap_threshold, self._trim_threshold = size, 2 * size
            return
        start, end = self._joined(start, start + size)
        if end != self._top:
            self._add(start, end - start)
            return
        self._top = start
        if self._end - start > self._trim_threshold:
            self._end = _pages(start + _LEAST + _PAD)

    def _joined(self, start: int, end: int) -> tuple[int, int]:
        """Return the bounds of a free block joined with the holes beside it."""
        if end in self._by_start:
            after = self._by_start[end]
            self._remove(end, after)
            end += after
        if start in self._by_end:
            before = self._by_end[start]
            self._remove(before, start - before)
            start = before
        return start, end

    def _add(self, start: int, size: int) -> None:
        insort(self._holes, (size, start))
        self._by_start[start], self._by_end[start + size] = size, start

    def _remove(self, start: int, size: int) -> None:
        del self._holes[bisect_left(self._holes, (size, start))]
        del self._by_start[start], self._by_end[start + size]
