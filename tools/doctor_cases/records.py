"""Records of what the doctor sees of a run, made by training it."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import veneer
from tools.doctor_cases.cases import Case, planned_config
from tools.doctor_cases.folders import make_folder
from veneer.config.schema import RunConfig
from veneer.doctor.evidence import Evidence, write_evidence
from veneer.doctor.gather import gather_evidence
from veneer.errors import UserError
from veneer.train.events import StepDone

__all__ = ["RECORDS", "ROOT", "record", "record_path"]

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "tests" / "golden" / "doctor"
_KILLED_AFTER = 20
_MEMORY_LEFT = 2**28  # bytes beyond what the process has once torch is imported


def record_path(case: Case) -> Path:
    """Return the file that a run's evidence is recorded in."""
    return RECORDS / f"{case.name}.json"


def record(case: Case) -> None:
    """Make a run and record the evidence that it leaves."""
    make_folder(case.pictures, Path("pictures") / case.name)
    config = planned_config(case)
    shutil.rmtree(config.output.dir, ignore_errors=True)
    if case.execution == "complete":
        _train(config)
    else:
        child = multiprocessing.get_context("spawn").Process(target=_train_in_child, args=(case,))
        child.start()
        child.join()
    evidence = gather_evidence(config.output.dir, measured=case.execution == "complete")
    RECORDS.mkdir(parents=True, exist_ok=True)
    record_path(case).write_bytes(_compact_json(evidence))


def _train(config: RunConfig, callback: Callable[[object], None] = lambda event: None) -> None:
    try:
        veneer.run_training(config, callback=callback)
    except UserError as fault:  # a problem that ends the run
        print(f"{config.output.dir}: {fault}", flush=True)


def _train_in_child(case: Case) -> None:
    """Train in a process of its own that is killed, or that has little memory."""
    if case.execution == "killed":
        _train(planned_config(case), _kill_self)
        return
    torch.nn.functional.conv2d(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3)).sum().item()
    family = veneer.load_base("bundled")  # so that what loading maps is there before the limit
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_LEFT, resource.RLIM_INFINITY))
    del family
    _train(planned_config(case))


def _kill_self(event: object) -> None:
    if isinstance(event, StepDone) and event.step == _KILLED_AFTER:
        os.kill(os.getpid(), signal.SIGKILL)


def _compact_json(evidence: Evidence) -> bytes:
    """Return evidence as JSON on few lines, with numbers of five digits."""
    plain = _rounded(json.loads(write_evidence(evidence)))
    lines = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in plain.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
