"""What a training loop looks like on a terminal and in a log."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import pytest
from rich.console import Console

from veneer.cli.terminal import progress as module
from veneer.cli.terminal.progress import Progress
from veneer.engine.memory_usage import MemoryUsage
from veneer.plan.memory import Memory, Phase
from veneer.plan.plan import NetworkPlan, Plan
from veneer.run.events import Planned, Resumed
from veneer.train.events import Finished, SampleDue, StepDone, TrainingStarted, Warned

PLAN = Plan(MappingProxyType({"unet": NetworkPlan(10, 100, MappingProxyType({"to_q": 1}))}), 1000)


def planned(peak: int) -> Plan:
    """A plan that foresaw so many bytes."""
    return replace(PLAN, memory=Memory("cpu", (Phase("training step", peak, {}),), None))


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_memory_usage", lambda: MemoryUsage(peak=1_050_000_000, current=942_000_000))


@dataclass
class Clock:
    """Goes on by so many seconds whenever it is looked at in a step."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def step(number: int, loss: float = 0.5) -> StepDone:
    return StepDone(number, loss, None, {"unet": 2e-3}, 1.0)


def events(losses: list[float], start: int = 0, plan: Plan = PLAN) -> list[object]:
    steps = len(losses) + start
    done = [step(start + n, loss) for n, loss in enumerate(losses, start=1)]
    return [Planned(plan), TrainingStarted(start, steps), *done, Finished(steps, {})]


def shown(losses: list[float], *, terminal: bool, start: int = 0, width: int = 80, plan: Plan = PLAN) -> str:
    text = io.StringIO()
    Progress(Console(file=text, force_terminal=terminal, width=width)).watch(events(losses, start, plan))
    return text.getvalue()


def screen(text: str) -> list[str]:
    """The last picture of the bar, without the codes that move and colour it."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()][-2:]


def test_a_log_gets_plain_lines_now_and_then() -> None:
    lines = shown([0.5] * 200, terminal=False, plan=planned(1_100_000_000)).splitlines()
    assert [int(re.findall(r"^step (\d+)/200 ", line)[0]) for line in lines] == [1, *range(10, 201, 10)]
    assert "\x1b" not in "".join(lines)
    memory = "memory 942 MB, peak 1.05 GB, plan 1.10 GB"
    assert lines[-1].startswith(f"step 200/200  loss 0.5000  rate 2.0e-03  {memory}  ")
    assert lines[-1].endswith("  took 0:00")


def test_a_terminal_gets_a_bar_and_a_line_that_fit_80_columns() -> None:
    text = shown([0.5] * 1000, terminal=True, plan=planned(1_100_000_000))
    above, below = screen(text)
    assert re.fullmatch(r"training ━+ 1000/1000 [\d.]+ steps/s  took 0:00 *", above)
    assert below.strip() == "loss 0.5000  rate 2.0e-03  memory 942 MB, peak 1.05 GB, plan 1.10 GB"
    assert max(map(len, screen(text))) <= 80 and "━" * 20 in above and "…" not in text
    assert "step 1000/1000" not in text


def test_a_narrow_terminal_cuts_the_line_and_wraps_nothing() -> None:
    above, below = screen(shown([0.5] * 4, terminal=True, width=50))
    assert len(above) <= 50 and len(below) <= 50 and below.rstrip().endswith("…")


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (planned(3_000_000_000), "  memory 1.50 GB, peak 2.00 GB, plan 3.00 GB  "),
        (PLAN, "  memory 1.50 GB, peak 2.00 GB  "),
    ],
)
def test_memory_is_shown_beside_its_plan(plan: Plan, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_memory_usage", lambda: MemoryUsage(2_000_000_000, 1_500_000_000))
    assert text in shown([0.5], terminal=False, plan=plan)


@pytest.mark.parametrize("losses", [[3.0], [3.0, 1.0]])
def test_the_smoothed_loss_leans_to_no_start(losses: list[float]) -> None:
    # weights 0.95^(n-i) over their sum
    weights = [0.95 ** (len(losses) - 1 - place) for place in range(len(losses))]
    mean = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert f"loss {mean:.4f}" in shown(losses, terminal=False).splitlines()[-1]


def test_a_skipped_step_leaves_the_smoothed_loss_as_it_was() -> None:
    lines = shown([3.0, math.nan], terminal=False).splitlines()
    assert all("loss 3.0000" in line for line in lines)
    assert "loss nan" in shown([math.nan], terminal=False)


def test_a_run_that_goes_on_counts_and_smooths_from_where_it_was() -> None:
    assert [line.split()[1] for line in shown([1.0, 1.0], terminal=False, start=8).splitlines()] == ["9/10", "10/10"]
    losses = [float(n % 7) for n in range(40)]
    text = io.StringIO()
    progress = Progress(Console(file=text))
    for event in (Resumed(30, Path("c"), tuple(losses[:30])), *events(losses[30:], 30)):
        progress(event)
    last = shown(losses, terminal=False).splitlines()[-1].split("  ")
    assert text.getvalue().splitlines()[-1].split("  ")[:2] == last[:2]


def test_the_time_left_is_that_of_the_last_steps(clock: Clock) -> None:
    text = io.StringIO()
    progress = Progress(Console(file=text))
    progress(TrainingStarted(100, 2100))
    clock.now = 1000.0  # the first step fills the caches
    progress(step(101))
    for number in range(102, 526):
        clock.now += 40.0  # more than rich's memory
        progress(step(number))
    left = f"{1575 * 40 // 3600}:{1575 * 40 % 3600 // 60:02d}:{1575 * 40 % 60:02d} left"
    assert text.getvalue().splitlines()[-1].endswith(f"  40.0 s/step  {left}")


def test_a_bar_says_when_it_paints_and_its_time_goes_on(clock: Clock) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    progress = Progress(console)
    progress(TrainingStarted(0, 10))
    assert [task.description for task in progress._bar.tasks] == ["encoding"]
    clock.now = 0.5
    progress(step(1))
    assert str(progress._pace) == "2.0 steps/s  0:04 left"
    progress(SampleDue(1))
    clock.now = 2.5
    assert str(progress._pace) == "2.0 steps/s  0:02 left"
    clock.now = 9.5
    assert str(progress._pace) == "2.0 steps/s  0:00 left"
    assert [task.description for task in progress._bar.tasks] == ["painting"]
    progress(step(2))
    assert [task.description for task in progress._bar.tasks] == ["training"]


def test_warnings_are_printed_as_they_are() -> None:
    text = io.StringIO()
    progress = Progress(Console(file=text, width=20))
    progress(Warned("test.warning", "[red] is a caption, and this line is longer than the terminal"))
    assert text.getvalue() == "warning: [red] is a caption, and this line is longer than the terminal\n"


def test_what_a_warning_concerns_is_under_it_and_is_not_endless() -> None:
    text = io.StringIO()
    progress = Progress(Console(file=text, width=20))
    progress(
        Warned("test.warning", "cut", tuple(f"[b]{number} in a line of its own, as it is" for number in range(10)))
    )
    lines = text.getvalue().splitlines()
    assert lines[:2] == ["warning: cut", "  [b]0 in a line of its own, as it is"]
    assert len(lines) == 10 and lines[-1] == "  and 2 more, which run.jsonl has"


def test_watch_gives_the_adapter_and_ends_the_loop() -> None:
    ended = []

    def loop():  # type: ignore[no-untyped-def]
        yield from events([1.0])
        ended.append(True)

    assert Progress(Console(file=io.StringIO())).watch(loop()) == {}
    assert ended == [True]
