"""The entry point: answers ``--version`` and ``--help`` at once, and runs the command line for everything else.

Typer, pydantic and torch take longer to import than a person waits for a help text, so that text is stored in
``cli/help.txt``; a test holds it equal to what Typer would print.
"""

from __future__ import annotations

import os
import sys

from veneer import __version__

__all__ = ["main"]

_HELP = os.path.join(os.path.dirname(__file__), "cli", "help.txt")


def main() -> int:
    """Run one command line; return its exit code."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        return _print(f"veneer {__version__}\n")
    if arguments in ([], ["--help"]):
        with open(_HELP, encoding="utf-8") as text:
            return _print(text.read())
    from veneer.malloc import request_large_pages

    request_large_pages()  # before PyTorch is loaded
    try:
        from veneer.cli.main import main as run
    except KeyboardInterrupt:
        print("veneer: stopped by SIGINT", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells count
    return run(arguments)


def _print(text: str) -> int:
    try:
        print(text, end="", flush=True)
    except OSError as failure:  # a pipe whose reader has gone, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where Python will write the rest as it ends
        if not isinstance(failure, BrokenPipeError):
            print(f"veneer: error: {failure.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
