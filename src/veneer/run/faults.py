"""A fault that ends a run is written to its log, where the doctor finds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from veneer.errors import MAYBE_OUT_OF_MEMORY, OUT_OF_MEMORY, UserError, fault_code, out_of_memory
from veneer.run.events import Callback, Failed

__all__ = ["MAYBE_OUT_OF_MEMORY", "OUT_OF_MEMORY", "fault_code", "record_faults"]


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
        raise out_of_memory(fault, remedy) from fault
