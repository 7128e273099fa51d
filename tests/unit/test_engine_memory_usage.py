"""How much memory is in use and how much is left, as the system itself says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from veneer.engine import memory_usage
from veneer.engine.memory_usage import MemoryUsage, available_memory, read_memory_usage
from veneer.engine.peak_memory import release_freed_memory


def test_what_is_allocated_is_in_use_and_the_peak_stays() -> None:
    release_freed_memory()  # in which the block might lie, without more being in use
    before = read_memory_usage()
    size = 200_000_000
    block = torch.ones(size, dtype=torch.uint8)
    during = read_memory_usage()
    del block
    release_freed_memory()
    after = read_memory_usage()
    assert during.current - before.current == pytest.approx(size, rel=0.05)
    assert during.current - after.current == pytest.approx(size, rel=0.05)
    assert after.current < 0.999 * during.current < after.peak  # the kernel updates its peak now and then
    assert during.peak >= during.current


PRINT_PEAK = """
import sys
from veneer.engine.memory_usage import read_memory_usage
print(read_memory_usage().peak)
sys.stdin.read()
"""


def test_it_is_what_the_kernel_tells_others() -> None:
    command = [sys.executable, "-c", PRINT_PEAK]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    peak = int(process.stdout.readline())
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    process.communicate("")
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    assert peak == pytest.approx(kib * 1024, rel=0.02)


@pytest.fixture
def without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory_usage, "_STATUS", tmp_path / "none")


def test_a_system_without_proc_tells_the_peak_of_the_whole_life(without_proc: None) -> None:
    assert memory_usage._read_peak() >= 0.98 * read_memory_usage().current


def test_a_mac_counts_bytes(without_proc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    here = memory_usage._read_peak()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert here == pytest.approx(memory_usage._read_peak() * 1024, rel=0.02)


def test_windows_has_a_peak_of_its_own(without_proc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    info = SimpleNamespace(rss=3, peak_wset=5)
    monkeypatch.setattr(memory_usage, "_process", lambda pid: SimpleNamespace(memory_info=lambda: info))
    monkeypatch.setattr(sys, "platform", "win32")
    assert read_memory_usage() == MemoryUsage(peak=5, current=3)


def test_on_a_gpu_it_is_what_pytorch_holds_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5)
    assert read_memory_usage() == MemoryUsage(peak=5, current=3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)  # a GPU that the run does not use
    assert read_memory_usage() != MemoryUsage(peak=0, current=3)


@pytest.mark.parametrize(("limit", "expected"), [("1000000001", 100_000_001), ("max", 2_000_000_000)])
def test_what_is_available_stays_within_the_limit_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int
) -> None:
    for name, text in {
        "memory.max": limit,
        "memory.current": "1000000000",
        "memory.stat": "inactive_file 100000000",
    }.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(memory_usage, "_CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2_000_000_000))
    assert available_memory() == expected


@pytest.mark.parametrize(("limit", "left"), [("3000000000", 2_100_000_000), ("max", None)])
def test_a_container_has_a_limit_and_cached_files_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, left: int | None
) -> None:
    files = {
        "memory.max": limit,
        "memory.current": "1000000000",
        "memory.stat": "anon 900000000\ninactive_file 100000000",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(memory_usage, "_CONTROL_GROUP", tmp_path)
    assert memory_usage._left_in_control_group() == left


def test_a_machine_without_control_groups_has_no_such_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_usage, "_CONTROL_GROUP", tmp_path / "nothing")
    assert memory_usage._left_in_control_group() is None
