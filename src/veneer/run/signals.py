"""Ctrl-C and SIGTERM: a step is finished and kept, and the user told how to go on; all else ends at once, in a line."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

__all__ = ["Caught", "Followed", "Interrupted", "ending_at_signals", "stopping_at_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A run was stopped by a signal, as a rule between two steps; what it had done is in its checkpoint.

    No ``Exception``, as ``KeyboardInterrupt`` is none: what handles errors must not take it for one.

    Attributes:
        signal: its number.
        step: steps done; None: it was not training, or was not given the time to end its step.
        checkpoint: the newest one; None if none could be written.
    """

    def __init__(self, number: int, step: int | None = None, checkpoint: Path | None = None) -> None:
        self.signal, self.step, self.checkpoint = number, step, checkpoint
        super().__init__(f"stopped by {signal.Signals(number).name}" + ("" if step is None else f" after step {step}"))

    @property
    def exit_code(self) -> int:
        """128 and the signal, as shells count."""
        return 128 + self.signal


class Followed(BaseException):
    """This process ends because the run of several does; the first of them tells why.

    Attributes:
        exit_code: the same as theirs.
    """

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(f"ends as the others do, with exit code {exit_code}")


@dataclass
class Caught:
    """The signal that asked to stop; 0 as long as none did."""

    number: int = 0


@contextmanager
def stopping_at_signals(stop: Callable[[], None]) -> Iterator[Caught]:
    """Within, the first SIGINT or SIGTERM calls ``stop``; the next one does what it does elsewhere: it ends at once."""
    caught = Caught()

    def note(number: int) -> None:
        caught.number = number
        stop()

    with _at_first_signal(note):
        yield caught


@contextmanager
def ending_at_signals() -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM raises ``Interrupted``; the next one does what it does elsewhere."""

    def end(number: int) -> None:
        raise Interrupted(number)

    with _at_first_signal(end):
        yield


@contextmanager
def _at_first_signal(do: Callable[[int], None]) -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM calls ``do`` with its number.

    A signal that is ignored, as by ``nohup``, stays so. Outside the main thread, where Python allows no handlers,
    nothing is changed.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def restore() -> None:
        for number in ours:
            signal.signal(number, before[number])

    def handle(number: int, frame: FrameType | None) -> None:
        restore()
        do(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
