"""A fault that ends a run is told in its log, where the doctor finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from veneer.errors import UserError
from veneer.evaluate.doctor.endings import is_out_of_memory

__all__ = ["Failed", "telling_faults"]


@dataclass(frozen=True)
class Failed:
    """The run ended by a fault.

    Attributes:
        kind: the fault's class.
        text: what it says.
    """

    kind: str
    text: str


@contextmanager
def telling_faults(tell: Callable[[object], None]) -> Iterator[None]:
    """Tell a fault on its way out; a want of memory leaves as a mistake in the configuration, which it is.

    A stop by a signal is no fault.
    """
    try:
        yield
    except Exception as fault:
        kind, text = type(fault).__name__, str(fault)
        tell(Failed(kind, text))
        if not is_out_of_memory(kind, text):
            raise
        remedy = "'veneer doctor' with the run's folder tells what to change; train.memory=checkpoint comes first"
        raise UserError(f"out of memory: {' '.join(text.split())}", remedy=remedy) from fault
