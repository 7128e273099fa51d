"""Numbers as text for people: differences, shares, intervals, amounts."""

from __future__ import annotations

import math

from veneer.evaluate.results import Band, Score
from veneer.plan.text import format_bytes

__all__ = ["NO_INTERVAL", "amount", "band_name", "change", "interval_text", "is_closed", "number", "share", "signed"]

NO_INTERVAL = "too few pictures for an interval"
_MINUS = "\N{MINUS SIGN}"
_SPACE = "\N{NO-BREAK SPACE}"


def number(value: float, form: str = ".4f") -> str:
    """Return a number in a format, with a minus sign in place of a hyphen."""
    return format(value, form).replace("-", _MINUS)


def signed(value: float) -> str:
    """Return a difference of losses, always with its sign."""
    return number(value, "+.4f")


def share(value: float, form: str = "+.1%") -> str:
    """Return a share in percent, with a space as in ``95 %``."""
    return number(value, form).replace("%", f"{_SPACE}%") if value else f"0{_SPACE}%"


def is_closed(low: float, high: float) -> bool:
    """Return whether an interval has two ends."""
    return math.isfinite(high - low)


def interval_text(low: float, high: float) -> str:
    """Return an interval of a difference of losses."""
    return f"{signed(low)} to {signed(high)}" if is_closed(low, high) else NO_INTERVAL


def change(score: Score) -> float:
    """Return the difference of a score as a share of the base's loss."""
    return score.mean / score.base if score.base else math.nan


def band_name(band: Band) -> str:
    """Return the name of a part of time, such as ``time 0 to 0.25, near the clean picture``."""
    name = f"time {band.start:.2g} to {band.end:.2g}"
    if band.start == 0 and band.end < 1:
        return f"{name}, near the clean picture"
    return f"{name}, near noise" if band.end == 1 and band.start > 0 else name


def amount(value: float, unit: str) -> str:
    """Return a number of bytes, seconds, steps or parameters with its unit."""
    if unit == "bytes":
        return format_bytes(round(value)).replace(" ", _SPACE)
    return f"{number(value, '.3f')}{_SPACE}s" if unit == "seconds" else f"{value:,.0f}"
