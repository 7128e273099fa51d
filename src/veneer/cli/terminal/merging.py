"""What is printed of bases: of one that adapters were merged into, and of one that an adapter was extracted from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veneer.cli.terminal.algebra import table_text

if TYPE_CHECKING:
    from veneer.verbs.extract import ExtractResult
    from veneer.verbs.merge import MergeResult

__all__ = ["extract_text", "merge_text"]


def merge_text(result: MergeResult) -> str:
    """Return what a merge has come to: what rounding took, what was measured, and what is not in it."""
    lines = [f"warning: {warning}" for warning in result.warnings]
    lines += [f"left out, for it has weights without the adapter: {path}" for path in result.left_out]
    lines += [_rounding_text(result), _difference_text(result)]
    return "\n".join(lines)


def _rounding_text(result: MergeResult) -> str:
    (layer, share), dtypes = result.worst, " and ".join(result.dtypes)
    return (
        f"{len(result.rounding)} weights changed; rounding to {dtypes} adds an error of {_percent(result.lost)} of "
        f"what is merged, at most {_percent(share)} ({layer})"
    )


def _difference_text(result: MergeResult) -> str:
    found = result.difference
    return (
        f"{found.layers} written layers run on random inputs, against the base with the adapter beside it: outputs "
        f"differ by {found.mean:.1e} of their size, at most {found.maximum:.1e}; by {_percent(found.of_change)} of "
        "what the adapter adds"
    )


def extract_text(result: ExtractResult) -> str:
    """Return what was extracted: a table of the kinds of layers, and what of the tuned base the adapter lacks."""
    rows = [("layers", "count", "rank", "norm kept")]
    for each in result.kinds:
        low, high = each.ranks
        ranks = f"{low}" if low == high else f"{low} to {high}"
        rows.append((each.kind, f"{each.layers:,}", ranks, f"{each.retained:.2%}"))
    lost = [
        f"lost: changes of {each.count:,} {each.what}, {_percent(each.share)} of the norm (most in {each.example})"
        for each in result.lost
    ]
    whole = f"{result.retained:.2%} of the norm of all that was changed is kept; {result.unchanged:,} weights are equal"
    return "\n".join([table_text(rows), *lost, whole])


def _percent(share: float) -> str:
    return "0 %" if share == 0 else f"{100 * share:.2f} %" if share >= 1e-4 else f"{100 * share:.0e} %"
