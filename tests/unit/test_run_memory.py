"""Memory that a run takes: measured when it ends, less what earlier work of the process took."""

from __future__ import annotations

import pytest

from veneer.engine.memory_usage import MemoryUsage
from veneer.run.events import MemoryMeasured
from veneer.run.memory import MemoryRecorder
from veneer.train.events import Finished, StepDone


def test_memory_is_emitted_once_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([MemoryUsage(500, 300), MemoryUsage(900, 400)])
    monkeypatch.setattr("veneer.run.memory.read_memory_usage", lambda: next(used))
    events: list[object] = []
    watch = MemoryRecorder(events.append)
    watch(StepDone(1, 1.0, None, {}, 1.0))
    assert events == []
    watch(Finished(1, {}))
    assert events == [MemoryMeasured("cpu", 300, 900)]


@pytest.mark.parametrize("later", [MemoryUsage(500, 400), MemoryUsage(400, 100)])
def test_memory_that_earlier_work_took_is_not_charged(later: MemoryUsage, monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([MemoryUsage(500, 300), later])
    monkeypatch.setattr("veneer.run.memory.read_memory_usage", lambda: next(used))
    events: list[object] = []
    MemoryRecorder(events.append)(Finished(1, {}))
    assert events == []
