"""Run the tests of tests/gpu within a time, and keep what each found as it ends."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tools.on_gpu.places import ROOT
from tools.on_gpu.table import check_table

__all__ = ["DEVICE", "check"]

DEVICE = "VENEER_GPU_TESTS"
"""Environment variable of the device that tests/gpu runs on: ``cuda``, or ``cpu`` with tiny sizes."""


def check(out: Path, device: str, seconds: float, select: str = "") -> int:
    """Run the tests; return pytest's exit status.

    Args:
        out: the folder for ``check.json``.
        device: ``cuda`` or ``cpu``.
        seconds: after which no test is begun.
        select: which tests, as pytest's ``-k`` has it; empty: all.
    """
    os.environ[DEVICE] = device
    recorder = _Recorder(out / "check.json", time.monotonic() + seconds)
    options = [
        "-q",
        "-n0",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu",
        "-k",
        select,
        "--rootdir",
        str(ROOT),
        "--tb=short",
        "-o",
        "addopts=",
    ]
    code = int(pytest.main([*options, "--import-mode=importlib", str(ROOT / "tests" / "gpu")], plugins=[recorder]))
    print(check_table(recorder.results))
    return code


class _Recorder:
    """A plugin of pytest that writes each test's outcome, and skips those that are left when the time is over.

    Attributes:
        results: of each test: its outcome, seconds, what it measured, and the last line of its fault.
    """

    def __init__(self, file: Path, ends: float) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self._file, self._ends = file, ends

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.monotonic() > self._ends:
            pytest.skip("no time was left")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        name = report.nodeid.partition("tests/gpu/")[2] or report.nodeid
        self.results[name] = {
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
            "figures": dict(report.user_properties),
            "why": _last_line(report),
        }
        self._file.write_text(json.dumps(self.results, indent=1) + "\n", "utf-8")


def _last_line(report: pytest.TestReport) -> str:
    """Return why a test failed or was skipped, in a line."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return "" if crash is None else " ".join(str(crash.message).split())[:500]
