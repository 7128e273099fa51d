"""Whole runs on the tiny base, which end in a second, for the tests of what happens to a run on its way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training import laid_over
from veneer.config.load import build_config
from veneer.config.schema import RunConfig
from veneer.data.preflight import Dataset
from veneer.family.protocol import Family
from veneer.plan.memory import STEP, Memory, Phase
from veneer.plan.parameters import plan_parameters
from veneer.run.events import Callback
from veneer.run.folder import CHECKPOINTS, LOG
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.weights.checkpoint import STATE, checkpoints_in
from veneer.weights.file import FILE_NAME


class Killed(BaseException):
    """Ends a run as if its process were gone."""


def quick_config(base: Path, pictures: Path, output: Path, **sections: Any) -> RunConfig:
    """Six steps, a checkpoint after each, and hardly a picture painted."""
    values: dict[str, Any] = {
        "base": str(base),
        "output": {"dir": str(output)},
        "data": {"sources": [{"path": str(pictures)}]},
        "train": {"max_steps": 6, "batch_size": 2, "learning_rate": 0.01, "checkpoint_every": 1},
        "sample": {"prompts": ["a red cross"], "steps": 1},
        "validation": {"draws": 1},
        "tracking": {"trackers": []},
    }
    return build_config(laid_over(values, sections), "test")


def use_base(patch: pytest.MonkeyPatch, family: Family, *, rehearse: bool = False) -> None:
    """Let runs and evaluations have this base and load none: they give it its bits back, so one is enough for all.

    Unless they are to ``rehearse`` their memory, runs count their parameters alone.
    """
    for loader in ("run.preparation.load_run_base", "verbs.evaluate.load_base"):
        patch.setattr(f"veneer.{loader}", lambda *_, **__: family)
    if not rehearse:
        without_rehearsals(patch)


def without_rehearsals(patch: pytest.MonkeyPatch) -> None:
    """Let runs count their parameters alone: rehearsing their memory takes longer than they do.

    A diagnosis of a run that was cut off finds that it needed next to nothing.
    """
    patch.setattr("veneer.run.session.assess_run", _count)
    patch.setattr("veneer.doctor.readers.memory.rehearse", lambda *_: SimpleNamespace(memory=_NEXT_TO_NOTHING))


_NEXT_TO_NOTHING = Memory("cpu", (Phase(STEP, 1, {}, 1),), None)


def _count(config: RunConfig, family: Family, dataset: Dataset, metadata: Mapping[str, str]) -> SimpleNamespace:
    """Return what a session reads of an assessment, of a run that fits."""
    return SimpleNamespace(plan=plan_parameters(config, family, metadata), warning=None)


def killing(kind: type, step: int) -> Callback:
    """Return a callback that dies at an event of a step."""

    def callback(event: object) -> None:
        if isinstance(event, kind) and getattr(event, "step", None) == step:
            raise Killed

    return callback


def killed(config: RunConfig, kind: type, step: int, resume: Resume | None = None) -> None:
    """Run until an event of a step, and die."""
    try:
        run_training(config, resume=resume, callback=killing(kind, step))
    except Killed:
        return
    raise AssertionError(f"no {kind.__name__} of step {step}")


def record_events(config: RunConfig, resume: Resume | None = None, *, overwrite: bool = False) -> list[Any]:
    """Return all events of a run until its end."""
    events: list[Any] = []
    run_training(config, overwrite=overwrite, resume=resume, callback=events.append)
    return events


def hashes(output: Path) -> tuple[str, str]:
    """Return the SHA-256 of a finished run's adapter file, and of its last state: adapter, moments, step."""
    state = checkpoints_in(output / CHECKPOINTS)[-1] / STATE
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (output / FILE_NAME, state))
    return first, second


def steps_kept(output: Path) -> list[int]:
    return [int(path.name[5:]) for path in checkpoints_in(output / CHECKPOINTS)]


def logged(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / LOG).read_text("utf-8").splitlines()]
