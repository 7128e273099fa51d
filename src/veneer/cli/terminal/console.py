"""Lines on a terminal, as they are: no markup, no colours, not wrapped."""

from __future__ import annotations

import sys

from rich.console import Console

from veneer.train.events import Warned

__all__ = ["print_warning", "say", "say_warning"]


def say(console: Console, text: str) -> None:
    """Print a text as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def say_warning(console: Console, event: Warned, most: int | None = None) -> None:
    """Print a warning, and under it what it concerns: all lines of that, or ``most`` of them."""
    say(console, f"warning: {event.text}")
    for detail in event.details[:most]:
        say(console, f"  {detail}")
    if event.details[:most] != event.details:
        say(console, f"  and {len(event.details[most:])} more, which run.jsonl has")


def print_warning(event: Warned) -> None:
    """Print a warning on standard error, all of it."""
    say_warning(Console(file=sys.stderr), event)
