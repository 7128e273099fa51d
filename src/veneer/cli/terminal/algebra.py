"""What is printed of adapters that were blended, compared, edited, pruned and resized."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veneer.verbs.blend import BlendResult

__all__ = ["blend_text"]


def blend_text(result: BlendResult) -> str:
    """Return what a blend has come to: its file, its ranks, what the cut lost, and doubts."""
    lowest, highest = result.ranks
    ranks = f"rank {highest}" if lowest == highest else f"ranks {lowest} to {highest}"
    lines = [f"warning: {warning}" for warning in result.warnings]
    lines.append(f"{result.layers} layers of {ranks}, {result.retained:.1%} of the norm of the sum kept")
    return "\n".join([*lines, str(result.path)])
