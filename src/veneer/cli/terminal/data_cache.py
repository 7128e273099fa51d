"""Show ``veneer data cache`` in a terminal: a bar, a table of what is there, what was removed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Console

from veneer.cli.terminal.console import print_text, say
from veneer.cli.terminal.picture_bar import picture_bar
from veneer.config.schema import RunConfig
from veneer.family.store_prune import BaseUsage
from veneer.plan.text import format_bytes, format_table, parse_bytes
from veneer.printable import in_one_line
from veneer.train.events import EncodingProgress
from veneer.verbs.data_cache import cache_of, cache_usage, fill_cache, prune_cache

__all__ = ["fill_in_terminal", "list_in_terminal", "prune_in_terminal"]


def fill_in_terminal(config: RunConfig) -> None:
    """Encode all that a run will need, with a bar."""
    cache_of(config)  # before anything takes long
    console = Console(stderr=True)
    with picture_bar("encoding", console) as advance:

        def emit(progress: EncodingProgress) -> None:
            advance(progress.done, progress.total)
            if not console.is_terminal and progress.is_told:
                say(console, f"encoding {progress.done}/{progress.total}")

        filled = fill_cache(config, emit)
    there = f"{filled.found:,} of {filled.total:,} were there already"
    print_text(f"{there}, {filled.computed:,} entries were encoded into {filled.folder}")


def list_in_terminal(config: RunConfig) -> None:
    """Print what a run's cache holds, a line for each base and kind."""
    bases = cache_usage(config)
    if not bases:
        print_text(f"{cache_of(config)} holds nothing")
        return
    rows = [("base", "kind", "entries", "size", "written")]
    rows += [row for base in bases for row in _rows(base)]
    total = sum(size for base in bases for size in base.sizes.values())
    print_text(f"{format_table(rows)}\n{format_bytes(total)} in {cache_of(config)}")


def _rows(base: BaseUsage) -> list[tuple[str, str, str, str, str]]:
    name = in_one_line(f"{base.name} ({base.folder})")
    written = f"{_day(base.first)} to {_day(base.last)}"
    return [(name, kind, f"{n:,}", format_bytes(base.sizes[kind]), written) for kind, n in base.entries.items()]


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")


def prune_in_terminal(configs: Sequence[RunConfig], *, unused: bool, older: float | None, max_size: str | None) -> None:
    """Remove entries, and print how many."""
    most = None if max_size is None else parse_bytes(max_size, "--max-size")
    done = prune_cache(configs, unused=unused, older=older, most=most)
    text = f"removed {done.removed:,} entries, {format_bytes(done.freed)}; {done.kept:,} are kept"
    text += f"; {done.old:,} files of an older release are gone" if done.old else ""
    text += f"; {done.in_use} files are written to by a run, and were left alone" if done.in_use else ""
    print_text(text)
