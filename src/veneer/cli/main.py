"""Run one command line; whatever goes wrong is one line on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import typer

from veneer.cli.app import app
from veneer.cli.resume_option import resume_advice, with_resume_value
from veneer.errors import UserError
from veneer.run.signals import Followed, Interrupted, ending_at_signals
from veneer.silence import silence_notices

__all__ = ["main"]

_MISTAKE = 2
_FAILURE = 1
_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(arguments: Sequence[str]) -> int:
    """Run the command line ``arguments``.

    Returns:
        The exit code: 0, or 2 for a mistake, 1 for a failing machine or a file that is not what it says, 130 for
        Ctrl-C, 143 for SIGTERM.
    """
    try:
        with ending_at_signals(), silence_notices():
            code = app(with_resume_value(arguments), prog_name="veneer", standalone_mode=False)
    except UserError as mistake:
        return _refuse(str(mistake), _MISTAKE)
    except typer.TyperException as mistake:
        return _refuse(_with_suggestion(mistake), mistake.exit_code)
    except BrokenPipeError:  # the reader of a pipe, e.g. `head`, has seen enough
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILURE
    except OSError as failure:  # a full disk, a file that vanished: the machine's, not a bug to trace
        return _refuse(_of_machine(failure), _FAILURE)
    except Interrupted as stop:
        print(f"veneer: {resume_advice(stop, arguments)}", file=sys.stderr)
        return stop.exit_code
    except Followed as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        return _refuse("interrupted", _INTERRUPTED)
    return code if isinstance(code, int) else 0


def _refuse(what: str, code: int) -> int:
    # of several processes the first speaks for all; another does for itself when it cannot tell the first
    rank = os.environ.get("RANK", "0")
    who = "" if rank == "0" else f"process {rank}: "
    # typer and libraries may wrap their messages; a shell's user gets one line
    print(f"veneer: error: {who}{' '.join(what.split())}", file=sys.stderr)
    return code


def _with_suggestion(mistake: typer.TyperException) -> str:
    """Return Typer's message; the nearest known option is asked for as it asks for the nearest verb."""
    near: Sequence[str] | None = getattr(mistake, "possibilities", None)
    if not near:
        return mistake.format_message()
    return f"{mistake.message}. Did you mean {near[0]!r}?"


def _of_machine(failure: OSError) -> str:
    if failure.strerror is None:
        return str(failure)
    return ": ".join(str(part) for part in (failure.filename, failure.strerror) if part is not None)
