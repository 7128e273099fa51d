"""The error for a user's mistake: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

from veneer.printable import in_one_line, printable

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake in what the user gave; the command line prints it as one line and exits with 2.

    Args:
        what: what is wrong.
        code: what kind of mistake it is, for programs and tests: ``room.problem``, such as ``config.unknown_key``.
        where: the file, line or config key it was found in.
        remedy: what to do about it.
    """

    def __init__(self, what: str, *, code: str, where: object | None = None, remedy: str | None = None) -> None:
        self.what = what
        self.code = code
        self.where = None if where is None else str(where)
        self.remedy = remedy
        # a name is shown as it is, a library's words may have several lines
        place, said, advice = in_one_line(self.where or ""), _joined(what), _joined(remedy or "")
        super().__init__(": ".join(part for part in (place, said) if part) + (f"; {advice}" if advice else ""))


def _joined(text: str) -> str:
    return printable(" ".join(text.splitlines()))
