"""A study's table as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence

from veneer.plan.text import format_bytes
from veneer.printable import in_one_line
from veneer.study.statistics import Difference, Row, Table

__all__ = ["as_csv", "as_markdown"]


def as_markdown(table: Table, ranks: Mapping[str, str] | None = None) -> str:
    """Return the table, its failures and its conclusions.

    Args:
        table: of the study.
        ranks: by point, where they were counted for a budget; a column of its own.
    """
    seeds = max((len(row.losses) for row in table.rows), default=0)
    parts = [_grid(_header(table, ranks), [_cells(row, table, ranks) for row in table.rows])] if table.rows else []
    parts += [in_one_line(f"- not done: {each.point}, seed {each.seed}: {each.reason}") for each in table.failures]
    parts += [in_one_line(f"- {each.point}, seed {each.seed}: {each}") for each in table.stopped]
    if table.advice is not None:
        parts += ["", table.advice.text]
    if table.rows:
        parts += ["", _method(table, seeds)]
    return "\n".join(parts) + "\n"


def _header(table: Table, ranks: Mapping[str, str] | None) -> list[str]:
    """Return the names of the columns."""
    against = [] if table.reference is None else [f"against {table.reference}"]
    counted = [] if ranks is None else ["rank"]
    return [
        "point",
        *counted,
        "parameters",
        "held-out loss",
        "against base",
        *against,
        "seeds",
        "time",
        "memory",
        "file",
    ]


def _cells(row: Row, table: Table, ranks: Mapping[str, str] | None) -> list[str]:
    """Return a row of the table."""
    counted = [] if ranks is None else [ranks.get(row.point, "")]
    against = [] if table.reference is None else [str(row.versus_reference or "")]
    done, requested = len(row.losses), len(table.seeds)
    return [
        row.point,
        *counted,
        f"{row.trainable:,}",
        f"{row.loss:.4f}",
        str(row.versus_base),
        *against,
        str(done) if done == requested else f"{done} of {requested}",
        "" if row.seconds is None else f"{row.seconds:.0f} s",
        "" if row.memory_bytes is None else format_bytes(row.memory_bytes),
        format_bytes(row.file_bytes),
    ]


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, whose first column is aligned to the left and the others to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    lines = ([_cell(cell) for cell in line] for line in (header, rule, *rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Return a text that stays in its cell and is no HTML."""
    return in_one_line(text).replace("|", "\\|").replace("<", "&lt;")


def _method(table: Table, seeds: int) -> str:
    """Return a paragraph on what was measured, and how intervals are computed."""
    pictures = "1 picture" if table.pictures == 1 else f"{table.pictures} pictures"
    draws = "1 draw" if table.draws == 1 else f"{table.draws} draws"
    text = f"Base: {table.base:.4f}. Losses on {pictures} held out, {draws} of noise each, the same for all."
    population = (
        "over pictures and seeds (two-way random model, Satterthwaite's degrees of freedom)"
        if seeds > 1
        else "over pictures"
    )
    return f"{text} Differences are paired by picture and seed; 95 % intervals {population}, each for itself."


def as_csv(table: Table) -> str:
    """Return a line for each point, with numbers unrounded, for spreadsheets."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    ends = ["mean", "low", "high"]
    header = ["point", "trainable", "file_bytes", "seconds", "memory_bytes", "loss", "seeds"]
    lines.writerow([*header, *(f"versus_base_{end}" for end in ends), *(f"versus_reference_{end}" for end in ends)])
    for row in table.rows:
        cells = [row.point, row.trainable, row.file_bytes, row.seconds, row.memory_bytes, row.loss, len(row.losses)]
        lines.writerow([*cells, *_ends(row.versus_base), *_ends(row.versus_reference)])
    return text.getvalue()


def _ends(gap: Difference | None) -> list[float | None]:
    """Return the mean and both ends of a difference; an open end is None."""
    if gap is None:
        return [None] * 3
    return [gap.mean, *(end if math.isfinite(end) else None for end in (gap.low, gap.high))]
