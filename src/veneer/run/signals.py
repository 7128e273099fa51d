"""Ctrl-C and SIGTERM: a training ends after its step with a checkpoint; all else ends at once, in one line."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

__all__ = ["CaughtSignal", "Interrupted", "PeerEnded", "ending_at_signals", "ignore_signals", "stopping_at_signals"]

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
        """The exit code of a process that this stopped: 128 and the signal, as shells count."""
        return 128 + self.signal


class PeerEnded(BaseException):
    """This process ends because the run of several does; the first of them says why.

    Attributes:
        exit_code: the same as theirs.
    """

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(f"ends as the others do, with exit code {exit_code}")


@dataclass
class CaughtSignal:
    """The signal that asked to stop.

    Attributes:
        number: of it; 0 as long as none came.
    """

    number: int = 0


@contextmanager
def stopping_at_signals(stop: Callable[[], None], *, launched: bool = False) -> Iterator[CaughtSignal]:
    """Call ``stop`` at the first SIGINT or SIGTERM within; the next one does what it does elsewhere: it ends at once.

    Args:
        stop: is called in the signal's handler.
        launched: a launcher started this process among others. It sends them signals that the terminal has sent them
            already, so that a second one is no impatience: all within do no more than the first.
    """
    caught = CaughtSignal()

    def note(number: int) -> None:
        caught.number = number
        stop()

    with _handling(note, once=not launched):
        try:
            yield caught
        except Interrupted:
            if launched:
                ignore_signals()
            raise


@contextmanager
def ending_at_signals() -> Iterator[None]:
    """Raise ``Interrupted`` at the first SIGINT or SIGTERM within; the next one does what it does elsewhere.

    In a process that a launcher started among others, the next ones do nothing: the terminal and the launcher may both
    send one, and the process has yet to tell the others and the user.
    """

    def end(number: int) -> None:
        if os.environ.get("WORLD_SIZE", "1").strip() not in ("", "0", "1"):  # as a launcher sets it
            ignore_signals()
        raise Interrupted(number)

    with _handling(end, once=True):
        yield


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM from now on, in a process of several that is about to end.

    The first that ends makes a launcher end the others, which have yet to say why; and a signal to all may reach one of
    them after it has stopped with those that had it before.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handling(action: Callable[[int], None], *, once: bool) -> Iterator[None]:
    """Call ``action`` with the number of a SIGINT or SIGTERM within: the first one, or each.

    A signal that is ignored, as by ``nohup``, stays so. Outside the main thread, where Python allows no handlers,
    nothing is changed.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def restore() -> None:
        for number in ours:
            signal.signal(number, before[number])

    def handle(number: int, frame: FrameType | None) -> None:
        if once:
            restore()
        action(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    finally:
        if not any(signal.getsignal(number) is signal.SIG_IGN for number in ours):  # see ignore_signals
            restore()
