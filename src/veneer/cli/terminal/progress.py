"""Show a training loop's events: a bar on a terminal, plain lines in a pipe or a log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from veneer.adapter.protocol import AdapterWeights
from veneer.cli.terminal.console import say, say_warning
from veneer.engine.memory_usage import read_memory_usage
from veneer.plan.text import format_bytes
from veneer.run.events import Planned, Resumed, SurveyAdvanced, Surveyed
from veneer.train.events import (
    EncodingProgress,
    Event,
    Finished,
    SampleDue,
    StepDone,
    StepSkipped,
    TrainingStarted,
    Warned,
)
from veneer.train.smoothed_loss import SmoothedLoss

__all__ = ["Progress"]

_LINES = 20  # in a log, for a whole run
_DETAILS = 8  # under a warning; the log has all
_WINDOW = 200
"""Steps from which the time that is left is computed: enough to hold the sheets and checkpoints between them."""


class Progress:
    """A callback that shows a training: step, speed, the time that is left, smoothed loss, learning rate, memory.

    Memory is what is in use, the peak, and the peak that was planned, if there is a plan of it. Either
    ``Progress().watch(events)``, or a context manager that is called with each event.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._pace = _Pace()
        self._bar = _Bar(self._console, self._pace)
        self._task: TaskID | None = None
        self._surveying: TaskID | None = None
        self._smooth = SmoothedLoss()
        self._planned: int | None = None

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: object) -> None:
        """Show one event; one that has no place on the bar is ignored."""
        if isinstance(event, Resumed):
            self._smooth = SmoothedLoss(event.losses)
        elif isinstance(event, SurveyAdvanced):
            self._show_survey(event)
        elif isinstance(event, Surveyed) and self._surveying is not None:
            self._bar.remove_task(self._surveying)
        elif isinstance(event, Planned):
            memory = event.plan.memory
            self._planned = None if memory is None else memory.peak
        elif isinstance(event, TrainingStarted):
            self._begin(event)
        elif isinstance(event, EncodingProgress):
            self._describe(f"encoding {event.done}/{event.total}" if event.done < event.total else "training")
        elif isinstance(event, StepDone):
            self._advance(event)
        elif isinstance(event, SampleDue):
            self._describe("painting")
        elif isinstance(event, Warned):
            say_warning(self._console, event, _DETAILS)
        elif isinstance(event, StepSkipped):
            say(self._console, f"warning: {event}")
        elif isinstance(event, Finished):
            self._bar.stop()

    def watch(self, events: Iterable[Event]) -> AdapterWeights:
        """Show a training loop from its first event to its last; return the trained adapter."""
        weights: AdapterWeights = {}
        with self:
            for event in events:  # to the very end, where the loop puts the base back
                self(event)
                if isinstance(event, Finished):
                    weights = event.weights
        return weights

    def _show_survey(self, event: SurveyAdvanced) -> None:
        if self._surveying is None:
            self._surveying = self._bar.add_task("looking pictures over", total=event.total)
        self._bar.update(self._surveying, completed=event.done)

    def _begin(self, event: TrainingStarted) -> None:
        self._pace.begin(event.start_step, event.max_steps)
        # before the first step the pictures are encoded, which may take a while
        self._task = self._bar.add_task("encoding", total=event.max_steps, completed=event.start_step)

    def _advance(self, event: StepDone) -> None:
        self._pace.step(event.step)
        loss = self._smooth.add(event.loss)
        numbers = f"loss {loss:.4f}  rate {max(event.rates.values()):.1e}{self._memory()}"
        if not self._console.is_terminal:
            if self._pace.is_logged:
                say(self._console, f"step {event.step}/{self._pace.steps}  {numbers}  {self._pace}")
        elif self._task is not None:
            self._bar.under = numbers
            self._bar.update(self._task, completed=event.step, description="training")

    def _memory(self) -> str:
        usage = read_memory_usage()
        parts = [format_bytes(usage.current), f"peak {format_bytes(usage.peak)}"]
        if self._planned is not None:
            parts.append(f"plan {format_bytes(self._planned)}")
        return f"  memory {', '.join(parts)}"

    def _describe(self, what: str) -> None:
        """Write beside the bar what is being done."""
        if self._task is not None:
            self._bar.update(self._task, description=what)


class _Pace:
    """The speed of a training, and the time that is left."""

    def __init__(self) -> None:
        self.begin(0, 0)

    def begin(self, start: int, steps: int) -> None:
        """Start the clock."""
        self._start, self._done, self.steps = start, start, steps
        self._times = deque([time.monotonic()], maxlen=_WINDOW + 1)
        self._began = self._times[0]

    def step(self, done: int) -> None:
        """Note that a step is done."""
        self._done = done
        self._times.append(time.monotonic())

    @property
    def is_logged(self) -> bool:
        """Check whether a log has a line of this step: the first, the last, and some between."""
        return self._done in (self._start + 1, self.steps) or self._done % max(1, self.steps // _LINES) == 0

    def __str__(self) -> str:
        """Return the speed, and the time that is left; in the end, the time that it took."""
        counted = len(self._times) - 1
        if not counted:
            return ""
        seconds = (self._times[-1] - self._times[0]) / counted
        if self._done >= self.steps:
            return f"{_speed(seconds)}  took {_clock(self._times[-1] - self._began)}"
        # while a step or a sheet is in the making the time goes on
        left = (self.steps - self._done) * seconds - (time.monotonic() - self._times[-1])
        return f"{_speed(seconds)}  {_clock(max(0.0, left))} left"


class _Bar(RichProgress):
    """A bar, and under it a line that is cut where the terminal ends."""

    def __init__(self, console: Console, pace: _Pace) -> None:
        self.under = ""
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), _PaceColumn(pace))
        # drawn in a thread that takes its time from training: once a second is as lively as a bar needs to be
        super().__init__(*columns, console=console, disable=not console.is_terminal, refresh_per_second=1)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar and the line."""
        yield from super().get_renderables()
        if self.under:
            yield Text(self.under, no_wrap=True, overflow="ellipsis")


class _PaceColumn(ProgressColumn):
    """A column of speed and time; rich's own forgets steps after 30 seconds, and so has none where one takes longer."""

    def __init__(self, pace: _Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        """Return the same for each task: there is one."""
        return Text(str(self._pace))


def _speed(seconds: float) -> str:
    """Return the speed of steps that take so many seconds each."""
    if seconds > 1:
        return f"{seconds:.1f} s/step"
    return f"{1 / seconds:.1f} steps/s" if seconds else "- steps/s"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
