"""Faults that end a run: recorded with a code, and what a lack of memory is known by."""

from __future__ import annotations

import pytest
import torch

from tests.errors import raises_code
from veneer.doctor.rules.endings import NOT_FINITE
from veneer.errors import UserError
from veneer.run.events import Failed
from veneer.run.faults import MAYBE_OUT_OF_MEMORY, OUT_OF_MEMORY, fault_code, record_faults
from veneer.train.step import NonFinite


def test_a_stop_is_no_fault() -> None:
    events: list[object] = []
    with pytest.raises(KeyboardInterrupt), record_faults(events.append):
        raise KeyboardInterrupt
    with pytest.raises(ValueError), record_faults(events.append):
        raise ValueError("x")
    assert events == [Failed("ValueError", "unexpected", "x")]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), OUT_OF_MEMORY),
        (MemoryError(), OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), OUT_OF_MEMORY),
        (RuntimeError("could not create a primitive"), MAYBE_OUT_OF_MEMORY),
        (RuntimeError("shapes do not fit"), "unexpected"),
        (UserError("the file is out of memory", code="data.odd_name"), "data.odd_name"),
    ],
)
def test_faults_have_codes(fault: Exception, code: str) -> None:
    assert fault_code(fault) == code


def test_a_lack_of_memory_leaves_as_a_mistake_in_the_configuration() -> None:
    events: list[object] = []
    with raises_code(OUT_OF_MEMORY), record_faults(events.append):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert events == [Failed("OutOfMemoryError", OUT_OF_MEMORY, "CUDA out of memory")]


def test_the_doctor_knows_the_codes_of_losses_that_are_not_finite() -> None:
    assert {NonFinite("loss", 1, ()).code, NonFinite("gradient", 1, ()).code} == NOT_FINITE
