"""The memory of a process beside its tensors: the heap's holes, code, objects, weights by the form of their files."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from veneer import malloc
from veneer.malloc import Thresholds
from veneer.plan.cpu import process
from veneer.plan.cpu.process import ModuleCounts, _resident, growth_after_loading, process_growth
from veneer.plan.memory import ENCODING, LOADING, STEP
from veneer.plan.trace import Block, Trace
from veneer.plan.tracer import MemoryTracer
from veneer.plan.weight_files import PartFiles, WeightFiles

MB = 10**6


def test_weights_that_leave_release_what_was_read_of_them() -> None:
    parts = {name: nn.Linear(100, 100, bias=False) for name in ("stays", "leaves")}
    tracer = MemoryTracer(torch.device("cpu"))
    tracer.begin_phase(STEP)
    networks = tracer.without_data(parts)
    with tracer.tracing():
        x = torch.zeros(1, 100)
        for network in networks.values():
            network(x)
        del networks["leaves"], network
    trace = tracer.trace
    of_weights = trace._replace(events=[event for event in trace.events if not trace.blocks[abs(event) - 1].malloc])
    mapped = list(_resident(of_weights, True, Thresholds()))
    assert (max(mapped), mapped[-1]) == (80_000, 40_000)
    assert set(_resident(of_weights, False, Thresholds())) == {0}  # copies were there in the beginning


TRACE = Trace(
    events=[1, 2, 3, -3, 4],
    blocks=[Block(100 * MB), Block(0, mapped=100 * MB), Block(40 * MB, malloc=40 * MB), Block(20 * MB, malloc=20 * MB)],
    phases=[(LOADING, 0), (ENCODING, 1), (STEP, 4)],
)


def test_a_process_holds_the_weights_that_were_read_and_the_heap() -> None:
    mapped = process_growth(TRACE, WeightFiles((PartFiles(25 * MB, 100 * MB),), mapped=True), ModuleCounts(0, 0))
    assert mapped[ENCODING] - mapped[LOADING] == pytest.approx(140 * MB, abs=8 * MB)
    more_code = process._CODE - process._CODE_ENCODING
    assert mapped[ENCODING] - mapped[STEP] == pytest.approx(20 * MB - more_code, abs=1 * MB)


def test_a_process_holds_copied_weights_from_the_beginning() -> None:
    weights = WeightFiles((PartFiles(25 * MB, 50 * MB),), mapped=False)
    copied = process_growth(TRACE, weights, ModuleCounts(0, 0))
    assert copied[LOADING] == 150 * MB  # with the file that is being read
    more_code = process._CODE - process._CODE_LOADING
    assert copied[STEP] - growth_after_loading(weights, 0) == pytest.approx(20 * MB + more_code, abs=1 * MB)


def test_on_a_large_base_large_blocks_leave_no_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    # a large block and a small one by turns, the large ones gone in the end, and all once more, when glibc knows them
    numbers = [2 * n + 1 for n in range(50)]
    events = [*range(1, 101), *(-n for n in numbers)]
    blocks = [Block(0, malloc=3 * MB), Block(0, malloc=1000)] * 50
    twice = [*events, *(event + 100 if event > 0 else event - 100 for event in events)]
    trace = Trace([*twice, 201], [*blocks, *blocks, Block(0, malloc=1000)], [(LOADING, 0), (STEP, len(twice))])
    large = WeightFiles((PartFiles(300 * MB, 0),), mapped=True)
    assert large.float32_bytes == 1200 * MB
    monkeypatch.setattr(malloc, "_requested", False)
    holes = process_growth(trace, large, ModuleCounts(0, 0))[STEP]
    monkeypatch.setattr(malloc, "_requested", True)
    assert holes - process_growth(trace, large, ModuleCounts(0, 0))[STEP] > 100 * MB
    small = WeightFiles((PartFiles(30 * MB, 0),), mapped=True)
    assert process_growth(trace, small, ModuleCounts(0, 0))[STEP] == holes


def test_modules_take_memory() -> None:
    weights = WeightFiles((), mapped=True)
    assert growth_after_loading(weights, 1000) > growth_after_loading(weights, 0)
    assert (
        process_growth(TRACE, weights, ModuleCounts(0, 1000))[STEP]
        > process_growth(TRACE, weights, ModuleCounts(0, 0))[STEP]
    )
