"""Run the parts on the machine, each in a process of its own that is ended when its time is over."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from tools.on_gpu import archive
from tools.on_gpu.places import ROOT, SITE, WEIGHTS

__all__ = ["PARTS", "run"]

PARTS: Mapping[str, float] = MappingProxyType({"check": 240.0, "bench": 240.0, "base": 285.0})
"""Seconds that each part may take."""
_GRACE = 15.0
"""Seconds that a part may take beyond its own, in which it should have ended by itself."""
_DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # PyTorch asks for it before CUDA is first used


def run(parts: Sequence[str], out: Path, device: str, seconds: float | None) -> int:
    """Unpack what travelled and run the parts; return 0 if all ended well.

    Args:
        parts: keys of ``PARTS``, in the order in which they run.
        out: the folder for results: of each part a log, and what it writes itself.
        device: ``cuda`` or ``cpu``.
        seconds: all of them together, the last may then take what is left; None: what each may take.
    """
    ends = time.monotonic() + (sum(PARTS[part] + _GRACE for part in parts) if seconds is None else seconds)
    with tempfile.TemporaryDirectory() as site:
        environment = _environment(Path(site))
        codes = []
        for part in parts:
            is_last = seconds is not None and part == parts[-1]
            left = min(math.inf if is_last else PARTS[part], ends - time.monotonic() - _GRACE)
            if left <= 0:
                print(f"{part}: skipped, no time was left")
                continue
            codes.append(_run_part(part, out, device, left, environment))
    return max(codes, default=1)


def _environment(site: Path) -> dict[str, str]:
    """Unpack packages and weights, where they travelled; return the environment that parts run in."""
    paths = [str(ROOT / "src"), str(ROOT)]
    if SITE.exists():
        archive.unpack_folder(SITE, site)
        paths.insert(0, str(site))
    if WEIGHTS.exists():
        print("unpacked:", ", ".join(archive.unpack_weights(WEIGHTS, ROOT)) or "no weights were missing")
    inherited = [path for path in (os.environ.get("PYTHONPATH"),) if path]
    own = {"PYTHONPATH": os.pathsep.join([*paths, *inherited]), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **_DETERMINISTIC, **own}


def _run_part(part: str, out: Path, device: str, seconds: float, environment: Mapping[str, str]) -> int:
    command = [sys.executable, "-m", "tools.on_gpu", part, "--out", str(out.resolve())]
    command += ["--device", device, "--seconds", f"{seconds:.0f}"]
    log = out / f"{part}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds + _GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            print(f"{part}: ended after {seconds + _GRACE:.0f} seconds; what it had found is in {out}")
    print(f"--- {part}, exit status {code}\n{_end_of(log)}", flush=True)
    return abs(code)


def _end_of(log: Path, most: int = 5000) -> str:
    return log.read_text("utf-8", errors="replace")[-most:]
