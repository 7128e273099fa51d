"""glibc's allocator as the plan models it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veneer.malloc import Thresholds
from veneer.plan.cpu.heap import Heap

MB = 10**6


def test_small_blocks_come_from_the_heap_and_large_ones_have_pages_of_their_own() -> None:
    heap = Heap(Thresholds())
    place, _ = heap.allocate(1000)
    assert place is not None and 0 < heap.resident < MB
    before = heap.resident
    large = heap.allocate(50 * MB)
    assert large[0] is None and heap.resident - before == pytest.approx(50 * MB, rel=1e-3)
    heap.free(*large)
    assert heap.resident == before


def test_once_freed_blocks_of_a_size_go_to_the_heap_and_leave_holes() -> None:
    heap = Heap(Thresholds())
    heap.free(*heap.allocate(MB))  # moves the threshold
    first, pin = heap.allocate(MB), heap.allocate(1000)
    assert first[0] is not None
    full = heap.resident
    heap.free(*first)
    assert heap.resident == full  # a hole below the pin
    again = heap.allocate(MB // 2)
    assert heap.resident == full and again[0] == first[0]
    heap.free(*again)
    heap.free(*pin)


def test_a_threshold_that_was_set_stays() -> None:
    heap = Heap(Thresholds(MB, MB, dynamic=False))
    heap.free(*heap.allocate(8 * MB))
    before = heap.resident
    large, pin = heap.allocate(2 * MB), heap.allocate(1000)
    assert large[0] is None and pin[0] is not None
    heap.free(*large)
    assert heap.resident - before < MB


def test_the_smallest_hole_that_is_large_enough_is_used() -> None:
    heap = Heap(Thresholds())
    heap.free(*heap.allocate(8 * MB))
    blocks = [heap.allocate(size) for size in (3 * MB, 100, MB, 100, 2 * MB, 100)]
    for place in (0, 2, 4):
        heap.free(*blocks[place])
    assert heap.allocate(MB + MB // 2)[0] == blocks[4][0]


def test_the_top_is_released_beyond_twice_the_threshold() -> None:
    heap = Heap(Thresholds())
    heap.free(*heap.allocate(MB))
    blocks = [heap.allocate(MB - 10_000) for _ in range(10)]
    full = heap.resident
    for block in reversed(blocks):
        heap.free(*block)
    assert full > 9 * MB and heap.resident < 2.2 * MB


@given(st.lists(st.tuples(st.integers(1, 3 * MB), st.integers(0, 30)), max_size=60))
def test_what_is_resident_is_never_less_than_what_lives(requests: list[tuple[int, int]]) -> None:
    heap, living = Heap(Thresholds()), list[tuple[int | None, int]]()
    for size, gone in requests:
        living.append(heap.allocate(size))
        if gone < len(living):
            heap.free(*living.pop(gone))
        assert heap.resident >= sum(size for _, size in living)
        places = sorted((start, start + size) for start, size in living if start is not None)
        assert all(end <= after for (_, end), (after, _) in pairwise(places))
