"""The fault of one picture, which puts that picture aside and does not end a run."""

from __future__ import annotations

__all__ = ["Unreadable", "check_size"]


class Unreadable(Exception):
    """A picture that cannot be used; the message says why."""


def check_size(size: int, limit: int) -> None:
    """Refuse more bytes than a limit.

    Raises:
        Unreadable: there are more.
    """
    if size > limit:
        raise Unreadable(f"too large: {size:,} bytes, at most {limit:,}")
