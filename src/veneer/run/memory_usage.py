"""What a run took of memory, for the log: the plan is held against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from veneer.engine.memory_usage import memory_in_use
from veneer.train.events import Finished

__all__ = ["MemoryTaken", "MemoryWatch"]


@dataclass(frozen=True)
class MemoryTaken:
    """The training is over, and this was its fullest moment.

    Attributes:
        device: kind of it.
        before: bytes in use before the base was loaded: Python and its libraries; 0 on a GPU.
        peak: bytes in use at the fullest moment since.
    """

    device: str
    before: int
    peak: int


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

    def _taken(self) -> MemoryTaken | None:
        used, before, gpu = memory_in_use(), self._before, _on_gpu()
        if used is not None and gpu and not self._gpu:
            return MemoryTaken("cuda", 0, used.peak)
        if used is None or before is None or before.now is None or used.peak <= before.peak:
            return None
        return MemoryTaken("cuda" if gpu else "cpu", before.now, used.peak)


def _on_gpu() -> bool:
    """Whether ``memory_in_use`` speaks of a GPU."""
    return torch.cuda.is_initialized() and torch.cuda.max_memory_allocated() > 0
