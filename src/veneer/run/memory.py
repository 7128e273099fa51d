"""The memory that a run took, for its log: the plan is compared with it."""

from __future__ import annotations

import torch

from veneer.engine.memory_usage import read_memory_usage
from veneer.run.events import Callback, MemoryMeasured
from veneer.train.events import Finished

__all__ = ["MemoryRecorder"]


class MemoryRecorder:
    """A callback that emits what a run took once it is trained; made before the base is loaded.

    Nothing is emitted in a process that has held more for something else before.

    Args:
        emit: is called with ``MemoryMeasured``.
    """

    def __init__(self, emit: Callback) -> None:
        self._emit, self._had_gpu, self._before = emit, _uses_gpu(), read_memory_usage()

    def __call__(self, event: object) -> None:
        """Take one event."""
        if isinstance(event, Finished) and (measured := self._measure()) is not None:
            self._emit(measured)

    def _measure(self) -> MemoryMeasured | None:
        usage, before, uses_gpu = read_memory_usage(), self._before, _uses_gpu()
        if uses_gpu and not self._had_gpu:
            return MemoryMeasured("cuda", 0, usage.peak)
        if usage.peak <= before.peak:
            return None
        return MemoryMeasured("cuda" if uses_gpu else "cpu", before.current, usage.peak)


def _uses_gpu() -> bool:
    """Return whether ``read_memory_usage`` measures a GPU."""
    return torch.cuda.is_initialized() and torch.cuda.max_memory_allocated() > 0
