"""Measured figures, written into the documents that quote them."""

from __future__ import annotations

from pathlib import Path

BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"


def publish(page: Path, figures: str) -> None:
    """Put ``figures`` between the page's two marks.

    Raises:
        ValueError: the page lacks a mark.
    """
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: no {BEGIN.strip()} with {END.strip()} after it")
    page.write_text(f"{before}{BEGIN}{figures}{END}{after}", "utf-8")


def published(page: Path) -> str:
    """What stands between the page's two marks."""
    return page.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
