"""The names of whole models' layers, as gathered from each program's own source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["KEY_TABLES", "KeyRow", "read_key_table"]

_FOLDER = Path(__file__).parent / "data" / "keys"
KEY_TABLES = tuple(sorted(file.stem for file in _FOLDER.glob("*.txt")))


@dataclass(frozen=True)
class KeyRow:
    """One layer of a transformer.

    Attributes:
        path: in diffusers.
        native: in the model's own code.
        kohya: name in kohya's format.
        rows: offset and length of the rows of the native layer's weight; None: all of them.
        shape: of the weight in diffusers.
    """

    path: str
    native: str
    kohya: str
    rows: tuple[int, int] | None
    shape: tuple[int, ...]


def read_key_table(name: str) -> list[KeyRow]:
    """Return the rows of a table; each of its lines stands for a layer of all blocks."""
    lines = (_FOLDER / f"{name}.txt").read_text().splitlines()[1:]
    return [row for line in lines for row in _rows(*line.split())]


def _rows(path: str, native: str, kohya: str, rows: str, shape: str, blocks: str) -> Iterator[KeyRow]:
    for block in _numbers(blocks):
        offset, _, length = rows.partition("+")
        yield KeyRow(
            _numbered(path, ".", block),
            _numbered(native, ".", block),
            _numbered(kohya, "_", block),
            (int(offset), int(length)) if length else None,
            tuple(map(int, shape.split("x"))),
        )


def _numbers(blocks: str) -> list[str]:
    if blocks == "-":
        return [""]
    ends = [tuple(map(int, part.split("-"))) for part in blocks.split(",")]
    return [str(number) for first, last in ends for number in range(first, last + 1)]


def _numbered(name: str, dot: str, block: str) -> str:
    return dot.join(block if level == "N" and block else level for level in name.split(dot))
