"""A fault that ends a run is written to its log, where the doctor finds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from veneer.errors import UserError
from veneer.run.events import Callback, Failed

__all__ = ["is_out_of_memory", "may_be_out_of_memory", "record_faults"]

_MEMORY_KINDS = ("OutOfMemoryError", "MemoryError")
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "failed to allocate")
_POSSIBLE_MEMORY_WORDS = ("could not create a primitive", "could not create a memory")
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
        kind, text = type(fault).__name__, str(fault)
        emit(Failed(kind, text))
        if not is_out_of_memory(kind, text):
            raise
        remedy = "'veneer doctor' with the run's folder tells what to change; train.memory=checkpoint comes first"
        what = f"out of memory: {' '.join(text.split())}"
        raise UserError(what, code="train.out_of_memory", remedy=remedy) from fault


def is_out_of_memory(kind: str, text: str) -> bool:
    """Return whether a fault, by its class's name and message, is a lack of memory: CUDA's, PyTorch's or Python's."""
    return kind in _MEMORY_KINDS or any(words in text.lower() for words in _MEMORY_WORDS)


def may_be_out_of_memory(kind: str, text: str) -> bool:
    """Return whether a fault is a lack of memory, or one that oneDNN raises for that among other reasons."""
    return is_out_of_memory(kind, text) or any(words in text.lower() for words in _POSSIBLE_MEMORY_WORDS)
