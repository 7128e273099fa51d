"""What is printed of adapters that were blended, compared, edited, pruned and resized."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from veneer.verbs.blend import BlendResult
    from veneer.verbs.resize import ResizeResult

__all__ = ["blend_text", "resize_text", "table_text"]


def blend_text(result: BlendResult) -> str:
    """Return what a blend has come to: its ranks, what the cut lost, and doubts."""
    lines = [f"warning: {warning}" for warning in result.warnings]
    layers = f"{result.layers:,} layers of rank {_range(result.ranks)}"
    return "\n".join([*lines, f"{layers}, {result.retained:.1%} of the norm of the sum kept"])


def resize_text(result: ResizeResult) -> str:
    """Return what a cut has done: a table of the kinds of layers, and the file's sizes."""
    head = ("layers", "count", "rank before", "rank now", "parameters before", "parameters now", "norm kept")
    rows = [
        (
            *(each.kind, f"{each.layers:,}", _range(each.ranks_before), _range(each.ranks_after)),
            *(f"{each.parameters_before:,}", f"{each.parameters_after:,}", f"{each.retained:.2%}"),
        )
        for each in result.kinds
    ]
    return f"{table_text([head, *rows])}\n{result.bytes_before:,} bytes before, {result.bytes_after:,} now"


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """Return a table: its first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(_padded(row, widths)).rstrip() for row in rows)


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]


def _range(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]}" if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"
