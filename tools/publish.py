"""Write measured figures into the documents that quote them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["publish", "published"]


def publish(page: Path, figures: str, section: str = "figures") -> None:
    """Put ``figures`` between the two marks of a page's section.

    Raises:
        ValueError: the page lacks a mark.
    """
    first, last = _marks(section)
    before, begin, rest = page.read_text("utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"{page}: no {first.strip()} with {last.strip()} after it")
    page.write_text(f"{before}{first}{figures}{last}{after}", "utf-8")


def published(page: Path, section: str = "figures") -> str:
    """Return what stands between the two marks of a page's section."""
    first, last = _marks(section)
    return page.read_text("utf-8").partition(first)[2].partition(last)[0]


def _marks(section: str) -> tuple[str, str]:
    return f"<!-- {section}: begin -->\n", f"<!-- {section}: end -->\n"
