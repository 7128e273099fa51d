"""Write the table of a run's buckets for a person."""

from __future__ import annotations

from collections.abc import Sequence

from veneer.data.bucket_table import BucketRow, BucketTable
from veneer.plan.text import format_table

__all__ = ["bucket_lines"]

_MOST_ROWS = 10
"""Buckets that are shown, those of the greatest shares."""


def bucket_lines(table: BucketTable) -> list[str]:
    """Return the lines that tell of buckets; none where all pictures have one size and are seen whole and as often."""
    least, most = table.extremes
    lines: list[str] = []
    if len(table.rows) > 1 or table.most_cropped > 0:
        rows: list[Sequence[str]] = [("bucket", "pictures", "share", "cropped away", "at most")]
        rows += [_cells(row) for row in table.rows[:_MOST_ROWS]]
        more = table.rows[_MOST_ROWS:]
        if more:
            share = sum(row.share for row in more)
            pictures = sum(row.pictures for row in more)
            rows.append((f"{len(more)} more", f"{pictures:,}", f"{share:.1%}", "", ""))
        pictures = sum(row.pictures for row in table.rows)
        rows.append(("all", f"{pictures:,}", "100.0%", f"{table.cropped:.1%}", f"{table.most_cropped:.1%}"))
        lines.append(format_table(rows))
    if most.share > least.share * (1 + 1e-9):
        lines.append(f"share of a picture: {least.share:.2%} ({least.picture}) to {most.share:.2%} ({most.picture})")
    return lines


def _cells(row: BucketRow) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.pictures:,}",
        f"{row.share:.1%}",
        f"{row.cropped:.1%}",
        f"{row.most_cropped:.1%}",
    )
