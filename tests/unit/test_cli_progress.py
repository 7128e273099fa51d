"""What a training loop looks like on a terminal and in a log."""

from __future__ import annotations

import io
import re
from types import MappingProxyType

import pytest
from rich.console import Console

from veneer.cli.progress import Progress
from veneer.plan.account import NetworkPlan, Plan
from veneer.train.events import Event, Finished, Planned, StepDone, Warned

PLAN = Plan(MappingProxyType({"unet": NetworkPlan(10, 100, MappingProxyType({"to_q": 1}))}), 1000)


def events(losses: list[float], start: int = 0) -> list[Event]:
    steps = len(losses) + start
    done = [StepDone(start + n, loss, None, {"unet": 2e-3}, 1.0) for n, loss in enumerate(losses, start=1)]
    return [Planned(PLAN, start, steps), *done, Finished(steps, {})]


def shown(losses: list[float], *, terminal: bool, start: int = 0) -> str:
    text = io.StringIO()
    Progress(Console(file=text, force_terminal=terminal, width=100)).watch(events(losses, start))
    return text.getvalue()


def test_a_log_gets_plain_lines_now_and_then() -> None:
    lines = shown([0.5] * 200, terminal=False).splitlines()
    assert [int(re.findall(r"^step (\d+)/200 ", line)[0]) for line in lines] == [*range(10, 201, 10)]
    assert "\x1b" not in "".join(lines)
    assert lines[-1].startswith("step 200/200  loss 0.5000  rate 2.0e-03  0:00 left")


def test_a_terminal_gets_a_bar() -> None:
    text = shown([0.5] * 4, terminal=True)
    assert "━" in text and "4/4" in text and "loss 0.5000" in text and "rate 2.0e-03" in text
    assert "step 4/4" not in text


@pytest.mark.parametrize("losses", [[3.0], [3.0, 1.0]])
def test_the_smoothed_loss_leans_to_no_start(losses: list[float]) -> None:
    # weights 0.95^(n-i) over their sum
    weights = [0.95 ** (len(losses) - 1 - place) for place in range(len(losses))]
    mean = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert f"loss {mean:.4f}" in shown(losses, terminal=False).splitlines()[-1]


def test_a_run_that_goes_on_counts_from_where_it_was() -> None:
    assert [line.split()[1] for line in shown([1.0, 1.0], terminal=False, start=8).splitlines()] == ["9/10", "10/10"]


def test_warnings_are_printed_as_they_are() -> None:
    text = io.StringIO()
    progress = Progress(Console(file=text, width=20))
    progress(Warned("[red] is a caption, and this line is longer than the terminal"))
    assert text.getvalue() == "warning: [red] is a caption, and this line is longer than the terminal\n"


def test_watch_gives_the_adapter_and_ends_the_loop() -> None:
    ended = []

    def loop():  # type: ignore[no-untyped-def]
        yield from events([1.0])
        ended.append(True)

    assert Progress(Console(file=io.StringIO())).watch(loop()) == {}
    assert ended == [True]
