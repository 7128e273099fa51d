"""What a run took of memory, for the log: the plan is held against it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from veneer.engine.memory_usage import memory_in_use
from veneer.run.events import MemoryMeasured
from veneer.train.events import Finished

__all__ = ["MemoryWatch"]


class MemoryWatch:
    """Tells what a run took once it is trained; made before the base is loaded.

    Nothing is told where the system tells nothing, and in a process that has held more for something else before.

    Args:
        tell: is told it.
    """

    def __init__(self, emit: Callable[[object], None]) -> None:
        self._emit, self._gpu, self._before = emit, _on_gpu(), memory_in_use()

    def __call__(self, event: object) -> None:
        """Listen to one event."""
        if isinstance(event, Finished) and (found := self._taken()) is not None:
            self._emit(found)

    def _taken(self) -> MemoryMeasured | None:
        used, before, gpu = memory_in_use(), self._before, _on_gpu()
        if used is not None and gpu and not self._gpu:
            return MemoryMeasured("cuda", 0, used.peak)
        if used is None or before is None or before.now is None or used.peak <= before.peak:
            return None
        return MemoryMeasured("cuda" if gpu else "cpu", before.now, used.peak)


def _on_gpu() -> bool:
    """Whether ``memory_in_use`` speaks of a GPU."""
    return torch.cuda.is_initialized() and torch.cuda.max_memory_allocated() > 0
