"""What a run took of memory, for the log: the plan is held against it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from veneer.engine.memory_usage import read_memory_usage
from veneer.run.events import MemoryMeasured
from veneer.train.events import Finished

__all__ = ["MemoryWatch"]


class MemoryWatch:
    """Tells what a run took once it is trained; made before the base is loaded.

    Nothing is told in a process that has held more for something else before.

    Args:
        tell: is told it.
    """

    def __init__(self, emit: Callable[[object], None]) -> None:
        self._emit, self._gpu, self._before = emit, _on_gpu(), read_memory_usage()

    def __call__(self, event: object) -> None:
        """Listen to one event."""
        if isinstance(event, Finished) and (found := self._taken()) is not None:
            self._emit(found)

    def _taken(self) -> MemoryMeasured | None:
        usage, before, gpu = read_memory_usage(), self._before, _on_gpu()
        if gpu and not self._gpu:
            return MemoryMeasured("cuda", 0, usage.peak)
        if usage.peak <= before.peak:
            return None
        return MemoryMeasured("cuda" if gpu else "cpu", before.current, usage.peak)


def _on_gpu() -> bool:
    """Whether ``read_memory_usage`` speaks of a GPU."""
    return torch.cuda.is_initialized() and torch.cuda.max_memory_allocated() > 0
