"""A bar for what reads or writes many bytes: how many are done, how fast, and the time that is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

__all__ = ["byte_bar"]


@contextmanager
def byte_bar(title: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of bytes done and of all bytes, which moves a bar on a terminal; elsewhere nothing is shown.

    Args:
        title: what is being done.
        console: where the bar is; default: standard error.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
