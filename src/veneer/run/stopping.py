"""Ctrl-C and SIGTERM while training: the step is finished and kept, and the user told how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

__all__ = ["Caught", "Interrupted", "stopping_at_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A run was stopped by a signal between two steps; what it had done is in its checkpoint.

    No ``Exception``, as ``KeyboardInterrupt`` is none: what handles errors must not take it for one.

    Attributes:
        signal: its number.
        step: steps done.
        checkpoint: the newest one; None if none could be written.
    """

    def __init__(self, number: int, step: int, checkpoint: Path | None) -> None:
        self.signal, self.step, self.checkpoint = number, step, checkpoint
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")

    @property
    def exit_code(self) -> int:
        """128 and the signal, as shells count."""
        return 128 + self.signal


@dataclass
class Caught:
    """The signal that asked to stop; 0 as long as none did."""

    number: int = 0


@contextmanager
def stopping_at_signals(stop: Callable[[], None]) -> Iterator[Caught]:
    """Within, the first SIGINT or SIGTERM calls ``stop``; the next one does what it does elsewhere: it ends at once.

    A signal that is ignored, as by ``nohup``, stays so. Outside the main thread, where Python allows no handlers,
    nothing is changed.
    """
    caught = Caught()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def restore() -> None:
        for number in ours:
            signal.signal(number, before[number])

    def handle(number: int, frame: FrameType | None) -> None:
        restore()
        caught.number = number
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    for number in ours:
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        restore()
