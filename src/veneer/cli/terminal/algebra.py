"""What is printed of adapters that were blended, compared, edited, pruned and resized."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from veneer.printable import in_one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from veneer.verbs.blend import BlendResult
    from veneer.verbs.compare import AdapterComparison, GroupComparison
    from veneer.verbs.edit import EditResult
    from veneer.verbs.prune import PruneResult
    from veneer.verbs.resize import ResizeResult

__all__ = ["blend_text", "comparison_text", "edit_text", "prune_text", "resize_text", "table_text"]


def blend_text(result: BlendResult) -> str:
    """Return what a blend has come to: its ranks, what the cut lost, and doubts."""
    lines = [f"warning: {warning}" for warning in result.warnings]
    layers = f"{result.layers:,} layers"
    if result.ranks is not None:
        layers += f" of rank {_range(result.ranks)}"
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
    sizes = f"{result.bytes_before:,} bytes before, {result.bytes_after:,} now"
    return "\n".join([table_text([head, *rows]), sizes, *_notes(result.notes)])


def _notes(notes: Sequence[str]) -> list[str]:
    return [f"note: {note}" for note in notes]


def comparison_text(comparison: AdapterComparison) -> str:
    """Return a comparison as a table of the kinds of layers, and what it means in sentences."""
    first, second = comparison.names
    head = ["layers", "count", "cosine", "drift", "phi of A", "phi of inputs", "phi of outputs", "by chance"]
    if comparison.base is not None:
        head += ["amplified by 1", "by 2"]
    groups = [*comparison.kinds, comparison.overall]
    rows = [_comparison_row(group, with_base=comparison.base is not None) for group in groups]
    names = f"1: {first}\n2: {second}"
    meaning = [*_meaning(comparison, comparison.overall), *_notes(comparison.notes)]
    return "\n".join([names, table_text([head, *rows]), "", *meaning])


def _comparison_row(group: GroupComparison, *, with_base: bool) -> list[str]:
    chance = max(group.by_chance.values(), default=math.nan)
    phis = [_number(group.similarity.get(side, math.nan)) for side in ("A", "input", "output")]
    row = [group.name, f"{group.layers:,}", _number(group.cosine), _number(group.drift), *phis, _number(chance)]
    return row + ([_number(factor) for factor in group.amplification] if with_base else [])


def _meaning(comparison: AdapterComparison, overall: GroupComparison) -> list[str]:
    """Return what the numbers of all layers say, in sentences."""
    lines = [_of_cosine(comparison.names, overall), *_of_directions(overall)]
    for place, count in enumerate(overall.lacking):
        if count:
            lines.append(
                f"{comparison.names[place]} lacks {count:,} of the {overall.layers:,} layers; they count as 0."
            )
    for name, factor, alignment in zip(comparison.names, overall.amplification, overall.alignment, strict=True):
        if factor is not None and alignment is not None:
            lines.append(
                f"{name} adds {factor:.2g} times what the base has in its directions, in which the base has "
                f"{alignment:.2g} times as much as in random ones (medians over layers)."
            )
    return lines


_ALIKE = (
    (0.99, "does the same as"),
    (0.7, "does mostly the same as"),
    (0.3, "does in part the same as"),
    (0.05, "has little in common with"),
    (-0.05, "has nothing in common with"),
    (-1.1, "works against"),
)
"""What a cosine of at least so much means."""


def _of_cosine(names: tuple[str, str], overall: GroupComparison) -> str:
    if not math.isfinite(overall.cosine):
        return "One of them changes nothing, so there is nothing to compare."
    words = next(words for least, words in _ALIKE if overall.cosine >= least)
    size = overall.norms[1] / overall.norms[0]
    return (
        f"{names[1]} {words} {names[0]}: the cosine of their changes is {overall.cosine:.2f}. It is {size:.2f} times "
        f"as large, and {overall.drift:.0%} of {names[0]}'s size away from it."
    )


def _of_directions(overall: GroupComparison) -> list[str]:
    """Return how much the leading directions share; nothing where no layer has any in both."""
    if "output" not in overall.similarity:
        return []
    told = {"read": overall.similarity.get("A", overall.similarity["input"]), "changed": overall.similarity["output"]}
    parts = " and ".join(f"{phi:.0%} of those that are {words}" for words, phi in told.items())
    chance = max(overall.by_chance.values())
    return [f"Of the leading directions they share {parts}, where random ones would share {chance:.0%}."]


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def edit_text(result: EditResult) -> str:
    """Return what was changed in a file's metadata, a line a key."""
    changed = [f"{key}: {_was(old)}" for key, old in result.changed.items()]
    removed = [f"{key}: removed, {_was(old)}" for key, old in result.removed.items()]
    return "\n".join([*changed, *removed] or ["every key had that text already"])


_LONGEST = 80  # characters of a text that is shown


def _was(text: str | None) -> str:
    if text is None:
        return "new"
    return f"was {in_one_line(text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...')!r}"


def prune_text(result: PruneResult) -> str:
    """Return what was dropped of an adapter, by block, and what is left."""
    rows = [(block, f"{count:,}") for block, count in _summed(result.dropped).items()]
    left = "" if result.retained is None else f", with {result.retained:.2%} of the norm of delta W"
    lost = "" if result.retained is None else f" (the rest is {1 - result.retained**2:.2%} of its square)"
    sizes = f"{result.bytes_before:,} bytes before, {result.bytes_after:,} now"
    table = table_text([("dropped", "layers"), *rows])
    return "\n".join([table, f"{result.kept:,} layers left{left}{lost}", sizes, *_notes(result.notes)])


_MOST_BLOCKS = 16


def _summed(blocks: Mapping[str, int]) -> Mapping[str, int]:
    """Return how many layers were dropped of each block, or of each network where there are many blocks."""
    if len(blocks) <= _MOST_BLOCKS:
        return blocks
    networks: dict[str, int] = {}
    for block, count in blocks.items():
        network = block.partition(".")[0]
        networks[network] = networks.get(network, 0) + count
    return networks


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """Return a table: its first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(_padded(row, widths)).rstrip() for row in rows)


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]


def _range(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]}" if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"
