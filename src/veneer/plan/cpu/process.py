"""The memory of a process that runs on the CPU, found by replaying the trace of its tensors.

Holes in the heap come from the order in which blocks are allocated and freed (:mod:`veneer.plan.cpu.heap`), the
workspace of convolutions and their kernels among them. Weights that are used as they lie in their file take memory when
they are first read. The rest are three constants, measured with PyTorch 2.13, diffusers 0.42 and CPython 3.11: machine
code of the libraries, which takes memory once it has run, and Python's objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import add

from veneer.malloc import Thresholds, thresholds_for
from veneer.plan.cpu.heap import Heap
from veneer.plan.memory import ENCODING, LOADING
from veneer.plan.trace import Block, Repeats, Trace
from veneer.plan.weight_files import WeightFiles

__all__ = ["ModuleCounts", "growth_after_loading", "process_growth"]

_CODE_LOADING, _CODE_ENCODING, _CODE = 5_000_000, 12_000_000, 22_000_000
"""Bytes of the libraries' files that loading reads, that a forward pass has read as well, and all that a run reads."""
_MODULE = 5_000
"""Bytes of Python's objects that go with a module: its dictionaries, parameters and names."""
_TENSOR = 1_500
"""Bytes that PyTorch keeps of a tensor beside its data: its shape, and what the backward pass needs to know."""


@dataclass(frozen=True)
class ModuleCounts:
    """Numbers of modules of a base.

    Attributes:
        base: as it was loaded.
        adapted: with the adapter in it.
    """

    base: int
    adapted: int


def process_growth(
    trace: Trace, files: WeightFiles, modules: ModuleCounts, repeats: Repeats | None = None
) -> Mapping[str, int]:
    """Return the bytes by which a process exceeds what it held before loading, at the peak of each phase by its name.

    Args:
        trace: of the run's tensors.
        files: the base's weights.
        modules: of the base.
        repeats: which blocks of memory stand for more; they leave no holes in the heap. None: each is one.
    """
    resident = list(_resident(trace, files.mapped, thresholds_for(files.float32_bytes)))
    if repeats is not None:
        resident = list(map(add, resident, repeats.added(trace, lambda block: _size(block, files.mapped))))
    growth = {}
    for name, (start, end) in trace.spans().items():
        code = _CODE_ENCODING if name == ENCODING else _CODE
        most = max(resident[start : end + 1])
        growth[name] = files.copied_bytes + most + code + modules.adapted * _MODULE
        if name == LOADING:
            growth[name] = max(files.loading_bytes, growth_after_loading(files, modules.base))
    return growth


def growth_after_loading(files: WeightFiles, modules: int) -> int:
    """Return the bytes by which a process has grown once its base is loaded and nothing has been computed with it.

    Args:
        files: the base's weights.
        modules: number of modules of the base.
    """
    return files.copied_bytes + _CODE_LOADING + modules * _MODULE


def _resident(trace: Trace, mapped: bool, thresholds: Thresholds) -> Iterator[int]:
    """Yield the bytes of the heap and of weights, before the first event and after each.

    Weights in their file count from when they are read until they leave. Copies are there from the start, and to the
    end: what they release lies between blocks that live, and was not seen to leave the process.
    """
    heap, allocated, weights = Heap(thresholds), dict[int, list[tuple[int | None, int]]](), 0
    yield 0
    for event in trace.events:
        number = abs(event) - 1
        block = trace.blocks[number]
        if mapped:
            weights += block.mapped if event > 0 else -block.mapped
        if event > 0:
            allocated[number] = [heap.allocate(size) for size in _sizes(block)]
        else:
            for place in allocated.pop(number):
                heap.free(*place)
        yield heap.resident + weights


def _size(block: Block, mapped: bool) -> int:
    return sum(_sizes(block)) + (block.mapped if mapped else 0)


def _sizes(block: Block) -> tuple[int, ...]:
    """Return the sizes that a block takes from the heap; a tensor has notes beside its data."""
    if not block.malloc:
        return ()
    return (block.malloc, _TENSOR) if block.tensor else (block.malloc,)
