"""The log of a run, summed up for its report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reports import evaluated, step_done, write_run
from veneer.report.build import write_report
from veneer.report.readers.log import summarize_log
from veneer.run.folder import LOG
from veneer.serialise import to_data


def steps_done(steps: int) -> Iterator[dict[str, Any]]:
    for step in range(1, steps + 1):
        yield step_done(step, None if step % 1000 == 7 else 1 + 1 / step)


def test_a_huge_log_becomes_a_small_page(tmp_path: Path) -> None:
    steps = 40_000
    folder = write_run(
        tmp_path / "run", steps, [*steps_done(steps), {"event": "Finished", "seconds": 1, "step": steps}]
    )
    training = summarize_log(folder / LOG, steps)
    assert training and training.curve and training.curve.steps_per_point == 100 and len(training.curve.points) == 400
    assert training.curve.skipped == 40 and training.ending.how == "finished" and training.step_seconds == 0.5
    first = training.curve.points[0]
    losses = [1 + 1 / step for step in range(1, 101) if step != 7]
    assert (first.step, first.low, first.high) == (100, 1.01, 2.0)
    assert first.loss == pytest.approx(math.fsum(losses) / 99)
    assert first.smoothed is not None and 1.01 < first.smoothed < 1.02
    assert write_report(folder).stat().st_size < 300_000


@pytest.mark.parametrize(
    ("last", "how"),
    [
        ([], "cut off"),
        # a run that is resumed where its patience had run out does not say so again
        ([{"event": "Finished", "step": 3}], "stopped early"),
        (
            [{"event": "EarlyStopped", "step": 3}, {"event": "Resumed", "step": 3}, {"event": "Finished", "step": 3}],
            "stopped early",
        ),
        ([step_done(4, 1.0), step_done(5, 1.0), {"event": "Finished", "step": 5}], "finished"),
        ([{"event": "EarlyStopped", "step": 3}, {"event": "Finished", "step": 3}], "stopped early"),
        ([{"event": "Stopped", "step": 3}], "stopped"),
        ([{"event": "Failed", "kind": "X", "text": "a fault"}], "failed"),
        # a run that was stopped and goes on
        ([{"event": "Stopped", "step": 3}, {"event": "Resumed", "step": 2}, step_done(3, 1.0)], "cut off"),
        # of a version to come
        ([{"event": "Evaluated", "step": 3}, {"event": "Unknown"}, {"no": "event"}], "cut off"),
    ],
)
def test_endings(last: list[dict[str, Any]], how: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 5, [*steps_done(3), *last])
    training = summarize_log(folder / LOG, 5)
    done = 5 if how == "finished" else 3
    assert training and (training.ending.how, training.ending.step, training.ending.max_steps) == (how, done, 5)


def test_warnings_are_counted_and_not_endless(tmp_path: Path) -> None:
    warned = [{"event": "Warned", "text": f"w{number % 25}"} for number in range(50)]
    training = summarize_log(write_run(tmp_path / "run", 5, warned) / LOG, 5)
    assert (
        training
        and training.warnings[0] == "w0 (2 times)"
        and (len(training.warnings), training.more_warnings) == (20, 10)
    )
    assert training.curve is None and summarize_log(tmp_path / "none", 5) is None


def test_what_a_warning_concerns_is_in_it(tmp_path: Path) -> None:
    warned = [{"event": "Warned", "text": "cut", "details": ["a", "b"]}]
    training = summarize_log(write_run(tmp_path / "run", 5, warned) / LOG, 5)
    assert training and training.warnings == ("cut; a; b",)


def test_a_score_of_a_step_that_was_done_again_counts_once(tmp_path: Path) -> None:
    lines = [{"event": "Evaluated", **to_data(evaluated(2, mean, 2))} for mean in (-0.1, -0.2)]
    training = summarize_log(write_run(tmp_path / "run", 5, lines) / LOG, 5)
    assert training and [each.held_out.mean for each in training.scores] == [-0.2]
