"""The peak of memory is that of the work it is asked for."""

from __future__ import annotations

import sys

import pytest
import torch

from veneer.engine import peak_memory
from veneer.engine.peak_memory import PeakMemory

MIB = 2**20


@pytest.mark.parametrize("first", [400, 0], ids=["after large work", "alone"])
def test_it_is_not_charged_for_what_came_before(first: int) -> None:
    if first:
        torch.ones(first * MIB // 4).sum()
    before = PeakMemory(torch.device("cpu"))
    start = before.bytes()
    torch.ones(100 * MIB // 4).sum()
    found = before.bytes()
    if sys.platform == "linux":
        assert start is not None and found is not None
        assert 95 * MIB <= found - start <= 150 * MIB


def test_where_the_peak_cannot_be_set_back_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_memory, "reset_peak", lambda: False)
    assert PeakMemory(torch.device("cpu")).bytes() is None
