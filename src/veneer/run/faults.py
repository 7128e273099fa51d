"""A fault that ends a run is told in its log, where the doctor finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from veneer.errors import UserError
from veneer.run.events import Failed

__all__ = ["is_out_of_memory", "may_be_out_of_memory", "recording_faults"]

_MEMORY_KINDS = ("OutOfMemoryError", "MemoryError")
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "failed to allocate")
_POSSIBLE_MEMORY_WORDS = ("could not create a primitive", "could not create a memory")
"""What oneDNN says when it gets no memory, and now and then for another reason."""


@contextmanager
def recording_faults(emit: Callable[[object], None]) -> Iterator[None]:
    """Tell a fault on its way out; a want of memory leaves as a mistake in the configuration, which it is.

    A stop by a signal is no fault.
    """
    try:
        yield
    except Exception as fault:
        kind, text = type(fault).__name__, str(fault)
        emit(Failed(kind, text))
        if not is_out_of_memory(kind, text):
            raise
        remedy = "'veneer doctor' with the run's folder tells what to change; train.memory=checkpoint comes first"
        raise UserError(f"out of memory: {' '.join(text.split())}", remedy=remedy) from fault


def is_out_of_memory(kind: str, text: str) -> bool:
    """Whether a fault, by its class's name and its words, is a want of memory: CUDA's, PyTorch's or Python's."""
    return kind in _MEMORY_KINDS or any(words in text.lower() for words in _MEMORY_WORDS)


def may_be_out_of_memory(kind: str, text: str) -> bool:
    """Return whether an exception is a want of memory, or one that oneDNN raises for that among other reasons."""
    return is_out_of_memory(kind, text) or any(words in text.lower() for words in _POSSIBLE_MEMORY_WORDS)
