"""The error for a user's mistake: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

from veneer.printable import in_one_line, printable

__all__ = ["MAYBE_OUT_OF_MEMORY", "OUT_OF_MEMORY", "UserError", "fault_code", "out_of_memory"]

OUT_OF_MEMORY = "train.out_of_memory"
MAYBE_OUT_OF_MEMORY = "train.maybe_out_of_memory"
"""Code of a fault that has other causes, too."""
_UNEXPECTED = "unexpected"

# PyTorch, CUDA and oneDNN raise no class of their own wherever they lack memory: what they say is matched here alone
_MEMORY_KINDS = ("OutOfMemoryError", "MemoryError")
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "failed to allocate")
_MAYBE_MEMORY_WORDS = ("could not create a primitive", "could not create a memory")
"""What oneDNN says when it gets no memory, and now and then for another reason."""


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


def fault_code(fault: Exception) -> str:
    """Return what kind of fault an exception is, as :class:`Failed` records it."""
    if isinstance(fault, UserError):
        return fault.code
    words = str(fault).lower()
    if type(fault).__name__ in _MEMORY_KINDS or any(phrase in words for phrase in _MEMORY_WORDS):
        return OUT_OF_MEMORY
    return MAYBE_OUT_OF_MEMORY if any(phrase in words for phrase in _MAYBE_MEMORY_WORDS) else _UNEXPECTED


def out_of_memory(fault: Exception, remedy: str) -> UserError:
    """Return the one line for a lack of memory."""
    said = " ".join(str(fault).split()) or type(fault).__name__
    return UserError(f"out of memory: {said}", code=OUT_OF_MEMORY, remedy=remedy)
