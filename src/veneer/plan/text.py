"""How sizes and tables are written for a person, and how a size is read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from veneer.errors import UserError

__all__ = ["format_bytes", "format_table", "parse_bytes"]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b|b)?\s*", re.IGNORECASE)


def format_bytes(size: int) -> str:
    """Return bytes in the decimal unit that makes a short number: ``3.44 GB``."""
    unit, factor = next(pair for pair in reversed(_UNITS.items()) if size >= pair[1] or pair[1] == 1)
    digits = 0 if factor == 1 else max(0, 3 - len(str(size // factor)))
    return f"{size / factor:,.{digits}f} {unit}"


def parse_bytes(text: str, where: str) -> int:
    """Return the bytes of ``8GB`` (10^9 each) or ``8GiB`` (2^30 each); a bare number is bytes.

    Args:
        text: the size.
        where: the option or key that it was given for.

    Raises:
        UserError: it is neither.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r} is no size", code="plan.not_a_size", where=where, remedy="write it as 8GB or 7.5GiB")
    number, unit = match.groups()
    return int(float(number) * {**_UNITS, **_BINARY}[(unit or "B").upper()])


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(_aligned(row, widths)).rstrip() for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *rest = row
    return [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
