"""What a process holds beside its tensors: the heap's holes, convolutions' workspace, weights as they are stored."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from veneer import malloc
from veneer.malloc import Thresholds
from veneer.plan.cpu import process
from veneer.plan.cpu.heap import Heap
from veneer.plan.cpu.process import _held, grown, loaded
from veneer.plan.cpu.workspace import KERNEL, workspace
from veneer.plan.memory import ENCODING, LOADING, STEP
from veneer.plan.stored import Stored, Weights, stored
from veneer.plan.tracer import Block, MemoryTracer, Trace

MB = 10**6


def test_small_blocks_come_from_the_heap_and_large_ones_have_pages_of_their_own() -> None:
    heap = Heap(Thresholds())
    place, _ = heap.take(1000)
    assert place is not None and 0 < heap.held < MB
    before = heap.held
    large = heap.take(50 * MB)
    assert large[0] is None and heap.held - before == pytest.approx(50 * MB, rel=1e-3)
    heap.give(*large)
    assert heap.held == before


def test_once_freed_blocks_of_a_size_go_to_the_heap_and_leave_holes() -> None:
    heap = Heap(Thresholds())
    heap.give(*heap.take(MB))  # moves the threshold
    first, pin = heap.take(MB), heap.take(1000)
    assert first[0] is not None
    full = heap.held
    heap.give(*first)
    assert heap.held == full  # a hole below the pin
    again = heap.take(MB // 2)
    assert heap.held == full and again[0] == first[0]
    heap.give(*again)
    heap.give(*pin)


def test_a_threshold_that_was_set_stays() -> None:
    heap = Heap(Thresholds(MB, MB, move=False))
    heap.give(*heap.take(8 * MB))
    before = heap.held
    large, pin = heap.take(2 * MB), heap.take(1000)
    assert large[0] is None and pin[0] is not None
    heap.give(*large)
    assert heap.held - before < MB


def test_the_smallest_hole_that_is_large_enough_is_taken() -> None:
    heap = Heap(Thresholds())
    heap.give(*heap.take(8 * MB))
    blocks = [heap.take(size) for size in (3 * MB, 100, MB, 100, 2 * MB, 100)]
    for place in (0, 2, 4):
        heap.give(*blocks[place])
    assert heap.take(MB + MB // 2)[0] == blocks[4][0]


def test_the_top_is_given_back_beyond_twice_the_threshold() -> None:
    heap = Heap(Thresholds())
    heap.give(*heap.take(MB))
    blocks = [heap.take(MB - 10_000) for _ in range(10)]
    full = heap.held
    for block in reversed(blocks):
        heap.give(*block)
    assert full > 9 * MB and heap.held < 2.2 * MB


@given(st.lists(st.tuples(st.integers(1, 3 * MB), st.integers(0, 30)), max_size=60))
def test_what_is_held_is_never_less_than_what_lives(wishes: list[tuple[int, int]]) -> None:
    heap, living = Heap(Thresholds()), list[tuple[int | None, int]]()
    for size, gone in wishes:
        living.append(heap.take(size))
        if gone < len(living):
            heap.give(*living.pop(gone))
        assert heap.held >= sum(size for _, size in living)
        places = sorted((start, start + size) for start, size in living if start is not None)
        assert all(end <= after for (_, end), (after, _) in pairwise(places))


def _taken_by(channels: int, side: int) -> tuple[list[int], object]:
    weight = torch.zeros(channels, channels, 3, 3)
    given = torch.zeros(2, channels, side, side)
    how = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    sizes, kernel = workspace(torch.ops.aten.convolution.default, (given, weight, None, *how), torch.zeros_like(given))
    return list(sizes), kernel


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_a_convolution_copies_its_weight_what_goes_in_and_what_comes_out() -> None:
    sizes, kernel = _taken_by(64, 16)
    picture = 4 * 2 * 64 * 16 * 16
    assert sizes == [4 * 64 * 64 * 9, picture, picture]
    assert kernel is not None and kernel == _taken_by(64, 16)[1] != _taken_by(64, 8)[1]


def test_weights_that_leave_take_what_was_read_of_them_along() -> None:
    parts = {name: nn.Linear(100, 100, bias=False) for name in ("stays", "leaves")}
    tracer = MemoryTracer(torch.device("cpu"))
    tracer.phase(STEP)
    networks = tracer.without_numbers(parts)
    with tracer.open():
        x = torch.zeros(1, 100)
        for network in networks.values():
            network(x)
        del networks["leaves"], network
    trace = tracer.trace
    of_weights = trace._replace(events=[event for event in trace.events if not trace.blocks[abs(event) - 1].taken])
    assert (max(_held(of_weights, True, Thresholds())), _held(of_weights, True, Thresholds())[-1]) == (80_000, 40_000)
    assert set(_held(of_weights, False, Thresholds())) == {0}  # copies were there in the beginning


def test_other_operations_take_nothing() -> None:
    assert workspace(torch.ops.aten.mul.Tensor, (torch.zeros(2), 2), torch.zeros(2)) == ((), None)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_the_ledger_enters_workspace_beside_the_tensors() -> None:
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    tracer = MemoryTracer(torch.device("cpu"))
    tracer.phase(STEP)
    empty = tracer.without_numbers(layer)
    with tracer.open():
        x = torch.zeros(2, 64, 16, 16)
        first, second = empty(x), empty(x)
    assert first.shape == second.shape == x.shape
    weight, picture = 4 * 64 * 64 * 9, 4 * 2 * 64 * 16 * 16
    taken = [block.taken for block in tracer.trace.blocks if block.taken]
    assert sorted(taken) == sorted([picture, KERNEL, *2 * [weight, picture, picture, picture]])
    assert [block.read for block in tracer.trace.blocks if block.read] == [weight]  # once
    assert tracer.moments()[STEP].total == weight + 3 * picture
    ends = [event for event in tracer.trace.events if event < 0]
    assert len(ends) == len(set(ends))


def _write(folder: Path, dtype: torch.dtype) -> None:
    for part, count in (("text_encoder", 1000), ("unet", 10_000), ("vae", 3000)):
        (folder / part).mkdir(parents=True)
        save_file({"weight": torch.zeros(count, dtype=dtype)}, folder / part / "model.safetensors")


def test_weights_of_float32_stay_in_their_file(tmp_path: Path) -> None:
    _write(tmp_path, torch.float32)
    found = stored(str(tmp_path), 0)
    assert found == Stored((Weights(1000, 4000), Weights(10_000, 40_000), Weights(3000, 12_000)), mapped=True)
    assert (found.copied, found.loading) == (0, 0)


def test_weights_of_float16_are_copied_while_their_file_is_read(tmp_path: Path) -> None:
    _write(tmp_path, torch.float16)
    found = stored(str(tmp_path), 0)
    assert not found.mapped
    assert found.copied == 4 * 14_000
    assert found.loading == 4 * 11_000 + 2 * 10_000  # when the second part has been read


def test_what_is_not_here_is_taken_to_be_copied() -> None:
    assert stored("owner/name", 4000) == Stored((Weights(1000, 0),), mapped=False)


TRACE = Trace(
    events=[1, 2, 3, -3, 4],
    blocks=[Block(100 * MB), Block(0, read=100 * MB), Block(40 * MB, taken=40 * MB), Block(20 * MB, taken=20 * MB)],
    phases=[(LOADING, 0), (ENCODING, 1), (STEP, 4)],
)


def test_a_process_holds_the_weights_that_were_read_and_the_heap() -> None:
    mapped = grown(TRACE, Stored((Weights(25 * MB, 100 * MB),), mapped=True), 0, 0)
    assert mapped[ENCODING] - mapped[LOADING] == pytest.approx(140 * MB, abs=8 * MB)
    more_code = process._CODE - process._CODE_ENCODING
    assert mapped[ENCODING] - mapped[STEP] == pytest.approx(20 * MB - more_code, abs=1 * MB)


def test_a_process_holds_copied_weights_from_the_beginning() -> None:
    weights = Stored((Weights(25 * MB, 50 * MB),), mapped=False)
    copied = grown(TRACE, weights, 0, 0)
    assert copied[LOADING] == 150 * MB  # with the file that is being read
    more_code = process._CODE - process._CODE_LOADING
    assert copied[STEP] - loaded(weights, 0) == pytest.approx(20 * MB + more_code, abs=1 * MB)


def test_on_a_large_base_large_blocks_leave_no_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    # a large block and a small one by turns, the large ones gone in the end, and all once more, when glibc knows them
    numbers = [2 * n + 1 for n in range(50)]
    events = [*range(1, 101), *(-n for n in numbers)]
    blocks = [Block(0, taken=3 * MB), Block(0, taken=1000)] * 50
    twice = [*events, *(event + 100 if event > 0 else event - 100 for event in events)]
    trace = Trace([*twice, 201], [*blocks, *blocks, Block(0, taken=1000)], [(LOADING, 0), (STEP, len(twice))])
    large = Stored((Weights(300 * MB, 0),), mapped=True)
    assert large.weights == 1200 * MB
    monkeypatch.setattr(malloc, "_asked", False)
    holes = grown(trace, large, 0, 0)[STEP]
    monkeypatch.setattr(malloc, "_asked", True)
    assert holes - grown(trace, large, 0, 0)[STEP] > 100 * MB
    small = Stored((Weights(30 * MB, 0),), mapped=True)
    assert grown(trace, small, 0, 0)[STEP] == holes


def test_modules_take_memory() -> None:
    weights = Stored((), mapped=True)
    assert loaded(weights, 1000) > loaded(weights, 0)
    assert grown(TRACE, weights, 0, 1000)[STEP] > grown(TRACE, weights, 0, 0)[STEP]
