"""Draw pictures side by side on white, with headings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

__all__ = ["fitted", "sheet", "table_of"]

_HEADING_LINES = 3


@dataclass(frozen=True)
class _Layout:
    """The sizes of a sheet's parts, in pixels."""

    cell: int
    gap: int
    text: int
    left: int
    lines: int  # of headings

    @property
    def top(self) -> int:
        """Height of the headings."""
        return self.lines * self.line

    @property
    def line(self) -> int:
        """Height of a line of text."""
        return self.text + 6


def sheet(
    rows: Sequence[Sequence[Image.Image]], columns: Sequence[str] = (), labels: Sequence[str] = (), *, cell: int = 128
) -> Image.Image:
    """Draw a table of pictures, each scaled to fit a square of ``cell`` pixels.

    Args:
        rows: pictures by row; rows may differ in length.
        columns: headings above the columns, wrapped to their width; none: no such row.
        labels: texts left of the rows, wrapped to their column; none: no such column.
        cell: side of a picture on the sheet, in pixels.
    """
    layout = _layout(cell, labelled=bool(labels), lines=_heading_lines(columns, cell, _text_size(cell)))
    width = max((len(row) for row in rows), default=0)
    pitch = cell + layout.gap
    size = (layout.left + layout.gap + width * pitch, layout.top + layout.gap + len(rows) * pitch)
    paper = Image.new("RGB", size, "white")
    _write_headings(paper, layout, columns[:width])
    _write_labels(paper, layout, labels[: len(rows)])
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            paper.paste(fitted(picture, cell), _corner(layout, down, across))
    return paper


def table_of(
    paper: Image.Image, columns: Sequence[str], labels: Sequence[str], *, cell: int = 128
) -> list[list[Image.Image]]:
    """Cut the pictures of a labelled sheet out again, by row, each a square of ``cell`` pixels.

    Args:
        paper: from :func:`sheet`.
        columns: its headings; none: it has one column.
        labels: of its rows.
        cell: side of a picture on it, in pixels.
    """
    layout = _layout(cell, labelled=True, lines=_heading_lines(columns, cell, _text_size(cell)))
    corners = [[_corner(layout, down, across) for across in range(len(columns) or 1)] for down in range(len(labels))]
    return [[paper.crop((left, top, left + cell, top + cell)) for left, top in row] for row in corners]


def _layout(cell: int, labelled: bool, lines: int) -> _Layout:
    return _Layout(cell, max(4, cell // 16), _text_size(cell), left=cell if labelled else 0, lines=lines)


def _text_size(cell: int) -> int:
    return max(12, cell // 9)


def _corner(layout: _Layout, down: int, across: int) -> tuple[int, int]:
    pitch = layout.cell + layout.gap
    return layout.left + layout.gap + across * pitch, layout.top + layout.gap + down * pitch


def fitted(picture: Image.Image, cell: int) -> Image.Image:
    """Fit a picture into a white square of ``cell`` pixels, larger or smaller but never stretched."""
    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    square = Image.new("RGB", (cell, cell), "white")
    resized = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    square.paste(resized, ((cell - size[0]) // 2, (cell - size[1]) // 2))
    return square


def _heading_lines(columns: Sequence[str], cell: int, text: int) -> int:
    """Return how many lines the longest heading takes, three at most."""
    font = ImageFont.load_default(text)
    return min(_HEADING_LINES, max((len(_wrapped(heading, cell, font)) for heading in columns), default=0))


def _write_headings(paper: Image.Image, layout: _Layout, columns: Sequence[str]) -> None:
    for across, heading in enumerate(columns):
        middle = (_corner(layout, 0, across)[0] + layout.cell // 2, layout.top // 2)
        _write(paper, layout, heading, middle, layout.lines)


def _write_labels(paper: Image.Image, layout: _Layout, labels: Sequence[str]) -> None:
    for down, label in enumerate(labels):
        middle = (layout.left // 2, _corner(layout, down, 0)[1] + layout.cell // 2)
        _write(paper, layout, label, middle, max(1, layout.cell // layout.line))


def _write(paper: Image.Image, layout: _Layout, text: str, middle: tuple[int, int], most: int) -> None:
    """Write a text around ``middle``, as wide as a cell, in ``most`` lines at most."""
    font = ImageFont.load_default(layout.text)
    lines = "\n".join(_wrapped(text, layout.cell, font)[:most])
    draw = ImageDraw.Draw(paper)
    draw.multiline_text(middle, lines, fill="black", font=font, anchor="mm", align="center")


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _shortened(text: str, width: int, font: _Font) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _wrapped(text: str, width: int, font: _Font) -> list[str]:
    """Break a text into lines of whole words no wider than ``width``; a word that alone is wider is cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_shortened(word, width, font))
    return lines
