"""Several processes in one run: they end together, whatever happens to one, and the first of them tells why."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from veneer.errors import UserError
from veneer.run.signals import Followed, Interrupted
from veneer.train.distributed import PeerFailed, PeerLost, ProcessGroup, processes_here

__all__ = ["distributed"]

_MISTAKE, _FAILURE = 2, 1


@contextmanager
def distributed() -> Iterator[ProcessGroup]:
    """The processes of this run. A fault within ends them all: the first raises it, the others ``Followed``.

    With one process, nothing but the fault itself is raised. One that is gone without a word is ``PeerLost`` to each of
    the others, and a fault of the program is raised by the process that has it as well, for its traceback.
    """
    with processes_here() as processes:
        try:
            yield processes
        except PeerFailed as end:
            _heed_no_launcher()
            raise _as_here(end, processes) from None
        except (Exception, Interrupted) as fault:
            if processes.count == 1:
                raise
            told = _words(fault)
            processes.leave(told)
            _heed_no_launcher()
            if processes.is_first or isinstance(fault, PeerLost) or told["kind"] == "bug":
                raise
            raise Followed(_exit_code(told)) from fault


def _words(fault: BaseException) -> dict[str, Any]:
    if isinstance(fault, Interrupted):
        return {"kind": "signal", "text": str(fault), "signal": fault.signal}
    if isinstance(fault, UserError):
        return {"kind": "mistake", "text": str(fault)}
    if isinstance(fault, OSError):
        return {"kind": "machine", "text": str(fault)}
    return {"kind": "bug", "text": f"{type(fault).__name__}: {fault}"}


def _exit_code(told: Mapping[str, Any]) -> int:
    if told["kind"] == "signal":
        return 128 + int(told["signal"])
    return _MISTAKE if told["kind"] == "mistake" else _FAILURE


def _as_here(end: PeerFailed, processes: ProcessGroup) -> BaseException:
    """What a fault of another process is to this one."""
    fault = end.fault
    if not processes.is_first:
        return Followed(_exit_code(fault))
    if fault["kind"] == "signal":
        return Interrupted(int(fault["signal"]))
    text = f"process {end.rank} of {processes.count}: {fault['text']}"
    return UserError(text) if fault["kind"] == "mistake" else OSError(text)


def _heed_no_launcher() -> None:
    """The first process that ends makes a launcher end the others, which are about to, and one has yet to say why."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
