"""Run one command line; whatever goes wrong is one line on standard error."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import typer

from veneer.cli.app import app
from veneer.cli.resume_option import resume_advice, with_resume_value
from veneer.cli.terminal.console import print_error, printing_libraries
from veneer.errors import OUT_OF_MEMORY, UserError, fault_code, out_of_memory
from veneer.printable import in_one_line
from veneer.run.signals import Interrupted, PeerEnded, ending_at_signals
from veneer.silence import silence_notices

__all__ = ["main"]

_MISTAKE = 2
_FAILURE = 1
_INTERRUPTED = 130  # 128 + SIGINT, as shells count
_WITH_LESS_MEMORY = "end other programs that hold memory, or do less at once: fewer pictures a batch, or smaller ones"


def main(arguments: Sequence[str]) -> int:
    """Run the command line ``arguments``.

    Returns:
        The exit code: 0, or 2 for a mistake, 1 for a failing machine or a file that is not what it says, 130 for
        Ctrl-C, 143 for SIGTERM.
    """
    try:
        _check_text(arguments)
        with ending_at_signals(), silence_notices(), printing_libraries():
            code = app(with_resume_value(arguments), prog_name="veneer", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk shows here, and not when Python ends
    except UserError as mistake:
        return _refuse(str(mistake), _MISTAKE)
    except typer.TyperException as mistake:
        return _refuse(_with_suggestion(mistake), mistake.exit_code)
    except BrokenPipeError:  # the reader of a pipe, e.g. `head`, has seen enough
        _give_up_output()
        return _FAILURE
    except OSError as failure:  # a full disk, a file that vanished: the machine's, not a bug to trace
        _give_up_output()
        return _refuse(_of_machine(failure), _FAILURE)
    except Interrupted as stop:
        print_error(f"veneer: {in_one_line(resume_advice(stop, arguments))}")
        return stop.exit_code
    except PeerEnded as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as fault:
        if fault_code(fault) == OUT_OF_MEMORY:
            return _refuse(str(out_of_memory(fault, _WITH_LESS_MEMORY)), _FAILURE)
        print_error(traceback.format_exc().rstrip())  # a fault of ours, whose trace may hold anybody's text
        return _FAILURE
    if code == _INTERRUPTED:
        return _refuse("interrupted", _INTERRUPTED)
    return code if isinstance(code, int) else 0


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse an argument that is no text: no config, log or file of metadata could hold it.

    Raises:
        UserError: names it.
    """
    for word in arguments:
        try:
            word.encode()
        except UnicodeEncodeError:
            remedy = "use a terminal in UTF-8, or rename the file"
            raise UserError("is not UTF-8", code="cli.not_utf8", where=f"argument {word}", remedy=remedy) from None


def _give_up_output() -> None:
    """Write what is still to be written nowhere, if standard output takes no more: Python would fail as it ends."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(what: str, code: int) -> int:
    # of several processes the first speaks for all; another does for itself when it cannot tell the first
    rank = os.environ.get("RANK", "0")
    who = "" if rank == "0" else f"process {rank}: "
    # typer and libraries may wrap their messages; a shell's user gets one line
    print_error(f"veneer: error: {who}{in_one_line(' '.join(what.split()))}")
    return code


def _with_suggestion(mistake: typer.TyperException) -> str:
    """Return Typer's message; the nearest known option is asked for as it asks for the nearest verb."""
    near: Sequence[str] | None = getattr(mistake, "possibilities", None)
    if not near:
        return mistake.format_message()
    return f"{mistake.message}. Did you mean {near[0]!r}?"


def _is_somewhere() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def _of_machine(failure: OSError) -> str:
    if failure.strerror is None:
        return str(failure)
    if failure.errno == errno.ENOENT and failure.filename is None and not _is_somewhere():
        return "the working directory is gone; change to another"
    return ": ".join(str(part) for part in (failure.filename, failure.strerror) if part is not None)
