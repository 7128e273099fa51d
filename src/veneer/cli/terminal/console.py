"""Lines on a terminal, as they are: no markup, no colours, not wrapped."""

from __future__ import annotations

from rich.console import Console

__all__ = ["say"]


def say(console: Console, text: str) -> None:
    """Print a text as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
