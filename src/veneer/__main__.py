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
        print(f"veneer {__version__}")
        return 0
    if arguments in ([], ["--help"]):
        with open(_HELP, encoding="utf-8") as text:
            sys.stdout.write(text.read())
        return 0
    from veneer.malloc import request_large_pages

    request_large_pages()  # before PyTorch is loaded
    try:
        from veneer.cli.main import main as run
    except KeyboardInterrupt:
        print("veneer: stopped by SIGINT", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells count
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
