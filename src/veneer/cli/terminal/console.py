"""The one way to a terminal: text is printed as it is, with no markup, colours or wrapping, and steers nothing."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from veneer.printable import in_one_line, printable

if TYPE_CHECKING:
    from rich.console import Console

    from veneer.train.events import Warned

__all__ = ["bar_mark", "print_error", "print_text", "print_warning", "printing_libraries", "say", "say_warning"]


def print_text(text: str, *, end: str = "\n") -> None:
    """Print a text on standard output."""
    _write(sys.stdout, printable(text) + end)


def bar_mark() -> str:
    """Return the character that bars on standard output are made of: a full block where its encoding has one."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return "\u2588" if "\u2588".encode(encoding, "ignore") else "#"


def print_error(text: str) -> None:
    """Print a text on standard error."""
    _write(sys.stderr, f"{printable(text)}\n")


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # as `>&-` leaves it
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def say(console: Console, text: str) -> None:
    """Print a text above a console's bar, if it has one."""
    encoded = printable(text).encode(console.encoding, "backslashreplace").decode(console.encoding)
    console.print(encoded, markup=False, emoji=False, highlight=False, soft_wrap=True)


def say_warning(console: Console, event: Warned, most: int | None = None) -> None:
    """Print a warning, and under it what it concerns: all lines of that, or ``most`` of them."""
    say(console, f"warning: {in_one_line(event.text)}")
    for detail in event.details[:most]:
        say(console, f"  {in_one_line(detail)}")
    if event.details[:most] != event.details:
        say(console, f"  and {len(event.details[most:])} more, which run.jsonl has")


def print_warning(event: Warned) -> None:
    """Print a warning on standard error, all of it."""
    from rich.console import Console

    say_warning(Console(file=sys.stderr), event)


@contextmanager
def printing_libraries() -> Iterator[None]:
    """Let what libraries warn of and log within steer no terminal either."""
    record_of, format_of = logging.getLogRecordFactory(), warnings.formatwarning

    def make_record(*args: Any, **keywords: Any) -> logging.LogRecord:
        record = record_of(*args, **keywords)
        record.msg, record.args = printable(record.getMessage()), ()
        return record

    def format_warning(*args: Any, **keywords: Any) -> str:
        return printable(format_of(*args, **keywords))

    logging.setLogRecordFactory(make_record)
    warnings.formatwarning = format_warning
    try:
        yield
    finally:
        logging.setLogRecordFactory(record_of)
        warnings.formatwarning = format_of
