"""Making a run, and recording what can be seen of it."""

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
from tools.illnesses.cases import Case, planned_config
from tools.illnesses.folders import make_folder
from veneer.config.schema import RunConfig
from veneer.doctor.evidence import Evidence, write_evidence
from veneer.doctor.gather import gather
from veneer.errors import UserError
from veneer.train.events import StepDone

__all__ = ["RECORDS", "ROOT", "record", "record_of"]

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "tests" / "golden" / "doctor"
_KILLED_AFTER = 20
_STARVED = 2**28  # bytes beyond what the process has once torch is there


def record_of(case: Case) -> Path:
    """File of what was recorded of a run."""
    return RECORDS / f"{case.name}.json"


def record(case: Case) -> None:
    """Make a run and record what can be seen of it."""
    make_folder(case.pictures, Path("pictures") / case.name)
    config = planned_config(case)
    shutil.rmtree(config.output.dir, ignore_errors=True)
    if case.way == "trained":
        _train(config)
    else:
        child = multiprocessing.get_context("spawn").Process(target=_suffer, args=(case,))
        child.start()
        child.join()
    evidence = gather(config.output.dir, measured=case.way == "trained")
    RECORDS.mkdir(parents=True, exist_ok=True)
    record_of(case).write_bytes(_short(evidence))


def _train(config: RunConfig, callback: Callable[[object], None] = lambda event: None) -> None:
    try:
        veneer.run_training(config, callback=callback)
    except UserError as fault:  # an illness that ends the run
        print(f"{config.output.dir}: {fault}", flush=True)


def _suffer(case: Case) -> None:
    """In a process of its own: be killed, or have no memory to speak of."""
    if case.way == "killed":
        _train(planned_config(case), _die)
        return
    torch.nn.functional.conv2d(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3)).sum().item()
    family = veneer.load_base("bundled")  # whatever loading maps is there before the limit
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _STARVED, resource.RLIM_INFINITY))
    del family
    _train(planned_config(case))


def _die(event: object) -> None:
    if isinstance(event, StepDone) and event.step == _KILLED_AFTER:
        os.kill(os.getpid(), signal.SIGKILL)


def _short(evidence: Evidence) -> bytes:
    """Evidence as JSON on a few lines, its numbers to five digits."""
    plain = _rounded(json.loads(write_evidence(evidence)))
    lines = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in plain.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
