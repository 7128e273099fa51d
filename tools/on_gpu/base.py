"""Train a base within a time and bring it back in a few files, whatever happens meanwhile."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tools.on_gpu import archive
from tools.on_gpu.places import DRAWINGS, ROOT
from tools.on_gpu.table import base_table

__all__ = ["ARCHIVE", "base"]

ARCHIVE = "base.tar"
"""Name that the parts of the written base begin with."""
NO_GRAPH = "no CUDA graph"
"""What a log has beside the reason."""
_LEFT = 8.0
"""Seconds that are kept for packing and for what nobody thought of."""
_TINY = 8
"""Concepts that are learned at tiny sizes."""


def base(out: Path, device: str, seconds: float, work: Path | None = None) -> int:
    """Train, write and measure a base; return 0 if there is one that was measured.

    Args:
        out: the folder for ``base.json``, ``base.jsonl``, ``sheet.png`` and the base itself, in parts of 15 MiB.
        device: ``cuda``, or ``cpu`` with tiny sizes.
        seconds: after which all ends.
        work: folder of states, from which a base that was cut short goes on; None: one that git ignores.
    """
    ends = time.monotonic() + seconds - _LEFT
    results = _Results(out, ROOT / "build" / "gpu-base" if work is None else work, device)
    try:
        _build(results, ends)
    except Exception as fault:
        traceback.print_exc()
        results.fault = f"{type(fault).__name__}: {fault}"
    figures = results.write()
    print(base_table(figures))
    return 0 if figures["quality"] else 1


def _build(results: _Results, ends: float) -> None:
    import torch

    from tools.build_base.build import Budget, Job, build
    from tools.build_base.design import LARGE, TINY
    from tools.build_base.engine import Engine

    is_gpu = results.device == "cuda"
    _take_drawings(results.work)
    build(
        Job(
            design=LARGE if is_gpu else TINY,
            work=results.work,
            out=results.work,
            engine=Engine(torch.device(results.device), is_graphed=is_gpu),
            budget=Budget.of(ends - time.monotonic()),
            written=results.take,
            most=0 if is_gpu else _TINY,
        )
    )


def _take_drawings(work: Path) -> None:
    """Have the packages that travelled where they are looked for."""
    packages = work / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for file in DRAWINGS.glob("*.tgz"):
        if not (packages / file.name).exists():
            shutil.copy(file, packages / file.name)


@dataclass
class _Results:
    """What comes back.

    Attributes:
        out: its folder.
        work: of states and logs.
        device: of training.
        fault: what ended it early.
    """

    out: Path
    work: Path
    device: str
    fault: str = ""

    def take(self, model: Path) -> None:
        """Bring a base that has just been written, with the figures that there are."""
        archive.pack_parts(model, self.out / ARCHIVE)
        if (model / "sheet.png").exists():
            shutil.copy(model / "sheet.png", self.out / "sheet.png")
        self.write()

    def write(self) -> dict[str, Any]:
        """Write figures and logs of all that was done so far; return the figures."""
        log = [{"phase": phase, **row} for phase in _phases() for row in _rows(self.work / phase / "log.jsonl")]
        (self.out / "base.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        figures = {
            "card": _card(self.device),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "phases": _summary(log),
            "quality": _json(self.work / "model" / "quality.json"),
            "bytes": {file.name: file.stat().st_size for file in sorted(self.out.glob(f"{ARCHIVE}.*"))},
            NO_GRAPH: {row["phase"]: row[NO_GRAPH] for row in log if NO_GRAPH in row},
            "fault": self.fault,
        }
        (self.out / "base.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        return figures


def _phases() -> tuple[str, ...]:
    from tools.build_base.build import PHASES

    return PHASES


def _summary(log: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return of each phase: how many steps, seconds of those that were logged, and the last loss."""
    found = {}
    for phase in _phases():
        rows = [row for row in log if row["phase"] == phase and "step" in row]
        if rows:
            seconds = sum(row["seconds"] for row in rows)
            found[phase] = {"steps": rows[-1]["step"], "seconds": round(seconds, 1), "loss": rows[-1]["loss"]}
    return found


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def _json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return found


def _card(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "CPU, tiny sizes"
