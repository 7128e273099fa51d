"""The table of ``veneer data check``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veneer.printable import in_one_line

if TYPE_CHECKING:
    from veneer.verbs.data_check import DataCheck

__all__ = ["check_text"]


def check_text(found: DataCheck) -> str:
    """Return a table of pictures that were looked over."""
    rows = [
        ("pictures", f"{found.train:,} to train on, {found.held_out:,} held out, {len(found.rejected):,} put aside"),
        *(("put aside", f"{path}: {reason}") for path, reason in found.rejected.items()),
        *(("same bytes", f"{first} and {second}") for first, second in found.copies),
        *(("look the same", f"{first} and {second}") for first, second in found.near_duplicates),
        *(("note", note) for note in found.notes),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {in_one_line(value)}" for name, value in rows)
