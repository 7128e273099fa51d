"""What is given to others, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veneer.printable import in_one_line

if TYPE_CHECKING:
    from veneer.verbs.publication import Publication

__all__ = ["publication_text"]


def publication_text(publication: Publication) -> str:
    """Return a table of the files with their sizes, of what stays here, and of what their owner should look at."""
    rows = [(file.name, f"{file.size:,}", file.about) for file in publication.files]
    rows.append(("in all", f"{publication.size:,}", "bytes"))
    names, sizes = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{in_one_line(name).ljust(names)}  {size.rjust(sizes)}  {about}" for name, size, about in rows]
    if publication.left_out:
        lines.append("stays here: " + ", ".join(f"{in_one_line(name)} ({why})" for name, why in publication.left_out))
    lines += [f"warning: {in_one_line(doubt)}" for doubt in publication.doubts]
    return "\n".join(lines)
