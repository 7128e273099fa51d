"""The memory of this machine and of this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from veneer.plan import machine
from veneer.plan.machine import free_memory, process_memory

CPU = torch.device("cpu")
MB = 10**6


def test_what_this_process_holds_is_its_own_to_use() -> None:
    free, held = free_memory(CPU), process_memory()
    assert free is not None and free > held > 50 * MB


@pytest.mark.parametrize(("limit", "left"), [("3000000000", 2100 * MB), ("max", None)])
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
    monkeypatch.setattr(machine, "_CONTROL_GROUP", tmp_path)
    assert machine._left_in_control_group() == left


def test_a_machine_without_control_groups_has_no_such_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CONTROL_GROUP", tmp_path / "nothing")
    assert machine._left_in_control_group() is None
