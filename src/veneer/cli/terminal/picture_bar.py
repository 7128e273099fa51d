"""A bar for what is done picture by picture: how many are done, and the time that is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["picture_bar"]


@contextmanager
def picture_bar(title: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of how many are done and how many there are, which moves a bar on a terminal alone.

    Args:
        title: what is being done.
        console: where the bar is; default: standard error.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
