"""What the process of a run on the CPU holds beyond its tensors, found by replaying what the tensors did.

The heap's holes come of the order in which blocks are taken and given back (:mod:`veneer.plan.cpu.heap`), the
workspace of convolutions and their kernels among them. Weights that are used as they lie in their file take memory when
they are first read. The rest are three constants, measured with PyTorch 2.13, diffusers 0.42 and CPython 3.11: machine
code of the libraries, which takes memory once it has run, and Python's objects.
"""

from __future__ import annotations

from collections.abc import Mapping

from veneer.malloc import Thresholds, thresholds_for
from veneer.plan.cpu.heap import Heap
from veneer.plan.memory import ENCODING, LOADING
from veneer.plan.stored import Stored
from veneer.plan.tracer import Trace

__all__ = ["grown", "loaded"]

_CODE_LOADING, _CODE_ENCODING, _CODE = 5_000_000, 12_000_000, 22_000_000
"""Bytes of the libraries' files that loading reads, that a forward pass has read as well, and all that a run reads."""
_MODULE = 5_000
"""Bytes of Python's objects that go with a module: its dictionaries, parameters and names."""
_NOTE = 1_500
"""Bytes that PyTorch keeps of a tensor beside its numbers: its shape, and what the backward pass needs to know."""


def grown(trace: Trace, stored: Stored, modules: int, adapted: int) -> Mapping[str, int]:
    """Bytes by which a process grows, at the fullest moment of each phase, over what it holds before it loads its base.

    Args:
        trace: of the run's tensors.
        stored: the base's weights.
        modules: of the base.
        adapted: the same with the adapter in it.
    """
    held = _held(trace, stored.mapped, thresholds_for(stored.weights))
    ends = [start for _, start in trace.phases[1:]] + [len(trace.events)]
    found = {}
    for (name, start), end in zip(trace.phases, ends, strict=True):
        most = max(held[start : end + 1])
        code = _CODE_ENCODING if name == ENCODING else _CODE
        found[name] = stored.copied + most + code + adapted * _MODULE
        if name == LOADING:
            found[name] = max(stored.loading, loaded(stored, modules))
    return found


def loaded(stored: Stored, modules: int) -> int:
    """Bytes by which a process has grown once its base is loaded and nothing has been computed with it."""
    return stored.copied + _CODE_LOADING + modules * _MODULE


def _held(trace: Trace, mapped: bool, thresholds: Thresholds) -> list[int]:
    """Bytes of the heap and of weights, before the first event and after each.

    Weights in their file count from when they are read until they leave. Copies are there from the start, and to the
    end: what they give back lies between blocks that live, and was not seen to leave the process.
    """
    heap, places, weights = Heap(thresholds), dict[int, list[tuple[int | None, int]]](), 0
    held = [0]
    for event in trace.events:
        number = abs(event) - 1
        block = trace.blocks[number]
        if event < 0:
            for place in places.pop(number, ()):
                heap.give(*place)
            weights -= block.read if mapped else 0
        else:
            weights += block.read if mapped else 0
            if block.taken:
                sizes = (block.taken, _NOTE) if block.size else (block.taken,)
                places[number] = [heap.take(size) for size in sizes]
        held.append(heap.held + weights)
    return held
