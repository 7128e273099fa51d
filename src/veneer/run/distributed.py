"""The processes of one run end together, whatever happens to one, and the first of them says why.

How they reach each other, and train to the bits of one process, is :mod:`veneer.train.distributed`, which knows nothing
of runs, signals or messages to a user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from veneer.errors import UserError
from veneer.run.signals import Interrupted, PeerEnded, ignore_signals
from veneer.train.distributed import PeerFailed, PeerLost, ProcessGroup, connect

__all__ = ["distributed"]

_MISTAKE, _FAILURE = 2, 1


@contextmanager
def distributed() -> Iterator[ProcessGroup]:
    """Connect the processes of this run. A fault within ends them all: the first raises it, the others ``PeerEnded``.

    With one process, nothing but the fault itself is raised. One that is gone without a message is ``PeerLost`` to each
    of the others, and a fault of the program is raised by the process that has it as well, for its traceback. A process
    of several that ends by a fault ignores SIGINT and SIGTERM from then on.
    """
    with connect() as processes:
        try:
            yield processes
        except PeerFailed as end:
            ignore_signals()
            raise _local_fault(end, processes) from None
        except (Exception, Interrupted) as fault:
            if processes.count == 1:
                raise
            report = _report(fault)
            processes.leave(report)
            ignore_signals()
            if processes.is_first or isinstance(fault, PeerLost) or report["kind"] == "bug":
                raise
            raise PeerEnded(_exit_code(report)) from fault


def _report(fault: BaseException) -> dict[str, Any]:
    """Return a fault as the other processes get it."""
    if isinstance(fault, Interrupted):
        return {"kind": "signal", "text": str(fault), "signal": fault.signal}
    if isinstance(fault, UserError):
        return {"kind": "mistake", "text": str(fault), "code": fault.code}
    if isinstance(fault, OSError):
        return {"kind": "machine", "text": str(fault)}
    return {"kind": "bug", "text": f"{type(fault).__name__}: {fault}"}


def _exit_code(report: Mapping[str, Any]) -> int:
    if report["kind"] == "signal":
        return 128 + int(report["signal"])
    return _MISTAKE if report["kind"] == "mistake" else _FAILURE


def _local_fault(end: PeerFailed, processes: ProcessGroup) -> BaseException:
    """Return what a fault of another process is raised as in this one."""
    report = end.report
    if not processes.is_first:
        return PeerEnded(_exit_code(report))
    if report["kind"] == "signal":
        return Interrupted(int(report["signal"]))
    text = f"process {end.rank} of {processes.count}: {report['text']}"
    return UserError(text, code=report["code"]) if report["kind"] == "mistake" else OSError(text)
