"""What ``veneer adapter convert`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veneer.verbs.convert import Conversion

__all__ = ["conversion_text"]


def conversion_text(done: Conversion) -> str:
    """Return what was written, what it lost, and what other readers find in it."""
    lines = [f"{done.path}: {done.layers} layers, {done.format}"]
    if done.rounding:
        lines.append(f"rounding took {done.rounding:.1e} of the norm of its tensors")
    lines += [f"note: {left_out}" for left_out in done.left_out]
    for each in done.readers:
        lines.append(f"{each.reader} {'finds' if each.agrees else 'reads it otherwise:'} {each.finding}")
    return "\n".join(lines)
