"""Measure groups of cases within a time, in a process that is begun anew where a group breaks it or takes too long."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tools.on_gpu.groups import GROUPS
from tools.on_gpu.places import ROOT
from tools.on_gpu.table import bench_table

__all__ = ["bench"]

_START = 45.0
"""Seconds that the process may take until its first group begins: its imports, on a cold disk."""
_LOOK = 0.2


def bench(out: Path, device: str, seconds: float, groups: Sequence[str] = tuple(GROUPS)) -> int:
    """Measure groups, keep their figures and print a table; return 0 if anything was measured.

    Args:
        out: the folder for ``bench.json``.
        device: ``cuda`` or ``cpu``.
        seconds: after which all ends.
        groups: which, in their order.
    """
    lines, ends, left = out / "bench.jsonl", time.monotonic() + seconds, list(groups)
    lines.unlink(missing_ok=True)
    while left and time.monotonic() < ends:
        begun = _measure(left, lines, device, ends)
        left = left[left.index(begun) + 1 :] if begun is not None else []
    figures = {**_machine(device), "skipped": left, "cases": [line for line in _read(lines) if "way" in line]}
    (out / "bench.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print(bench_table(figures))
    return 0 if any("error" not in case for case in figures["cases"]) else 1


def _measure(groups: Sequence[str], lines: Path, device: str, ends: float) -> str | None:
    """Run a process over groups; return the last one that it began, when it ends, is stuck, or the time is over."""
    command = [sys.executable, "-m", "tools.on_gpu.measure", *groups, "--file", str(lines), "--device", device]
    process = subprocess.Popen(command, cwd=ROOT)
    begun, until = None, min(ends, time.monotonic() + _START)
    while process.poll() is None and time.monotonic() < until:
        time.sleep(_LOOK)
        newest = _last_begun(lines)
        if newest in groups and newest != begun:
            begun, until = newest, min(ends, time.monotonic() + GROUPS[newest].limit)
    newest = _last_begun(lines)  # it may have begun more since, and ended
    begun = newest if newest in groups else begun
    if process.poll() is None:
        process.kill()
        _append(lines, {"group": begun, "way": "the rest", "error": "its time was over"})
    elif process.returncode:
        _append(lines, {"group": begun, "way": "the rest", "error": f"exit status {process.returncode}"})
    process.wait()
    return begun


def _append(lines: Path, line: dict[str, Any]) -> None:
    with lines.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _read(lines: Path) -> list[dict[str, Any]]:
    """Return the lines that are whole."""
    if not lines.exists():
        return []
    return [json.loads(line) for line in lines.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _last_begun(lines: Path) -> str:
    return next((line["begins"] for line in reversed(_read(lines)) if "begins" in line), "")


def _machine(device: str) -> dict[str, Any]:
    import torch

    from benchmarks.page import machine

    return {
        "machine": machine().replace("float32", "bfloat16"),
        "card": torch.cuda.get_device_name() if device == "cuda" else "CPU, tiny sizes",
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
