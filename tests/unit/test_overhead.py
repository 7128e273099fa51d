"""What a person sees costs next to nothing: a budget for a thousand steps, in seconds of the processor."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import overhead
from benchmarks.page import figures_of
from tests.bases import Defaults
from tools.publish import published
from veneer.cli.terminal.progress import Progress
from veneer.config.load import build_config, resolve
from veneer.plan.plan import Plan
from veneer.run.events import Planned
from veneer.run.folder import LOG, TENSORBOARD
from veneer.run.identity import Identity
from veneer.run.log import EventBus, EventLog
from veneer.run.status import RunHistory
from veneer.run.trackers.callback import TrackerCallback
from veneer.train.events import Finished, StepDone, TrainingStarted

STEPS = 1000
BUDGET = 1.5
"""Seconds. It is 1 % of a thousand steps of 0.15 s each, which is less than any base takes on two cores of a laptop."""


def tell_a_run(folder: Path, terminal: bool) -> float:
    """Seconds of the processor, this thread's and the bar's, that the listeners of a run of synthetic steps take."""
    values: dict[str, Any] = {"base": "bundled", "output": {"dir": str(folder)}, "data": {"sources": [{"path": "p"}]}}
    run = Identity(resolve(build_config(values, "test"), Defaults(64)), {})
    with open(os.devnull, "w") as nowhere, EventLog(folder / LOG) as log:
        progress = Progress(Console(file=nowhere, force_terminal=terminal, width=80))
        emit = EventBus(progress)
        emit.open(log)
        with progress, TrackerCallback(run, RunHistory(), emit) as tracking:
            emit.add(tracking)
            began = time.process_time()
            emit(Planned(Plan({}, 0)))
            emit(TrainingStarted(0, STEPS))
            for step in range(1, STEPS + 1):
                emit(StepDone(step, 1 / step, 0.5, {"unet": 1e-4, "text_encoder": 5e-5}, 1.0))
            emit(Finished(STEPS, {}))
            return time.process_time() - began


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "log"])
def test_a_thousand_steps_are_told_within_the_budget(tmp_path: Path, terminal: bool) -> None:
    assert tell_a_run(tmp_path, terminal) < BUDGET
    assert len((tmp_path / LOG).read_text().splitlines()) == STEPS + 4
    (curves,) = (tmp_path / TENSORBOARD).iterdir()
    assert curves.stat().st_size > 100 * STEPS  # it did what it was timed for


def test_the_page_quotes_the_measured_run() -> None:
    """The committed figures are of a run of a thousand steps."""
    figures = figures_of(overhead.NAME)
    assert figures["steps"] >= STEPS
    assert published(overhead.WATCHING_PAGE, overhead.NAME) == overhead.sentence(figures), "run: python -m benchmarks"


def test_the_measured_run_keeps_the_promise() -> None:
    figures = figures_of(overhead.NAME)
    assert sum(figures["shown"].values()) <= 0.01 * figures["training"]


@pytest.mark.slow
def test_no_tracker_is_imported_before_training() -> None:
    code = (
        "import sys; import veneer.cli.terminal.train, veneer.run.events;"
        "print(sorted({'tensorboard', 'trackio', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_meter_counts_nothing_twice_and_painting_not_at_all() -> None:
    now = [0.0]

    def lasting(seconds: float, then: Any = None) -> Any:
        def work() -> None:
            now[0] += seconds
            if then is not None:
                then()

        return work

    meter = overhead.Meter()

    def timed(name: str | None, work: Any) -> Any:
        return meter.timed(name, work, lambda: now[0])

    inner = timed("inner", lasting(2.0))
    painting = timed(None, lasting(50.0, inner))
    timed("outer", lasting(1.0, painting))()
    assert meter.seconds == {"inner": 2.0, "outer": 1.0}
