"""How much memory is in use, as the system itself tells it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from veneer.engine import memory_usage
from veneer.engine.memory_usage import InUse, memory_in_use


def test_what_is_allocated_is_in_use_and_the_peak_stays() -> None:
    before = memory_in_use()
    size = 200_000_000
    block = torch.ones(size, dtype=torch.uint8)
    during = memory_in_use()
    del block
    after = memory_in_use()
    assert before is not None and during is not None and after is not None
    assert before.now and during.now and after.now
    assert during.now - before.now == pytest.approx(size, rel=0.05)
    assert during.now - after.now == pytest.approx(size, rel=0.05)
    assert after.now < 0.999 * during.now < after.peak  # the kernel brings its peak up to date now and then
    assert during.peak >= during.now


def test_it_is_what_the_kernel_tells_others() -> None:
    code = "import sys; from veneer.engine.memory_usage import memory_in_use as m; print(m().peak); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = int(process.stdout.readline())
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    process.communicate("")
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    assert told == pytest.approx(kib * 1024, rel=0.02)


def test_a_system_without_proc_tells_the_peak_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = memory_in_use()
    monkeypatch.setattr(memory_usage, "_STATUS", tmp_path / "none")
    found = memory_in_use()
    assert found is not None and known is not None
    assert found.now is None and found.peak >= known.peak * 0.98


def test_a_mac_counts_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory_usage, "_STATUS", tmp_path / "none")
    here = memory_in_use()
    monkeypatch.setattr(sys, "platform", "darwin")
    there = memory_in_use()
    assert here is not None and there is not None and here.peak == pytest.approx(there.peak * 1024, rel=0.02)


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory_usage, "_STATUS", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory_in_use() is None


def test_on_a_gpu_it_is_what_pytorch_holds_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5)
    assert memory_in_use() == InUse(peak=5, now=3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)  # a GPU that the run does not use
    assert memory_in_use() != InUse(peak=0, now=3)
