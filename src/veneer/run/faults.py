"""A fault that ends a run is written to its log, where the doctor finds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from veneer.errors import UserError
from veneer.run.events import Callback, Failed

__all__ = ["MAYBE_OUT_OF_MEMORY", "OUT_OF_MEMORY", "fault_code", "record_faults"]

OUT_OF_MEMORY = "train.out_of_memory"
MAYBE_OUT_OF_MEMORY = "train.maybe_out_of_memory"
"""Code of a fault that has other causes, too."""
_UNEXPECTED = "unexpected"

# PyTorch, CUDA and oneDNN raise no class of their own wherever they lack memory: what they say is matched here alone
_MEMORY_KINDS = ("OutOfMemoryError", "MemoryError")
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "failed to allocate")
_MAYBE_MEMORY_WORDS = ("could not create a primitive", "could not create a memory")
"""What oneDNN says when it gets no memory, and now and then for another reason."""


@contextmanager
def record_faults(emit: Callback) -> Iterator[None]:
    """Emit ``Failed`` for a fault within; a lack of memory leaves as a mistake in the configuration, which it is.

    A stop by a signal is no fault.

    Raises:
        UserError: memory ran out. Other faults are raised as they are.
    """
    try:
        yield
    except Exception as fault:
        code, text = fault_code(fault), str(fault)
        emit(Failed(type(fault).__name__, code, text))
        if code != OUT_OF_MEMORY or isinstance(fault, UserError):
            raise
        remedy = "'veneer doctor' with the run's folder tells what to change; train.memory=checkpoint comes first"
        what = f"out of memory: {' '.join(text.split())}"
        raise UserError(what, code=OUT_OF_MEMORY, remedy=remedy) from fault


def fault_code(fault: Exception) -> str:
    """Return what kind of fault an exception is, as :class:`Failed` records it."""
    if isinstance(fault, UserError):
        return fault.code
    words = str(fault).lower()
    if type(fault).__name__ in _MEMORY_KINDS or any(phrase in words for phrase in _MEMORY_WORDS):
        return OUT_OF_MEMORY
    return MAYBE_OUT_OF_MEMORY if any(phrase in words for phrase in _MAYBE_MEMORY_WORDS) else _UNEXPECTED
