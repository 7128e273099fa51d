"""A training loop's events on the screen: a bar on a terminal, plain lines in a pipe or a log."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from veneer.adapter.spec import Factors
from veneer.train.events import Event, Finished, Planned, StepDone, Warned

__all__ = ["Progress"]

_MEMORY = 0.95  # of the smoothed loss: about the last twenty steps
_LINES = 20  # in a log, for a whole run


class Progress:
    """Listens to a training loop: step, smoothed loss, learning rate and the time that is left.

    Either ``Progress().watch(events)``, or a context manager that is called with each event.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._bar = Bar(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._steps = self._first = 0
        self._loss = self._weight = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: object) -> None:
        """Show one event; those without a place on the bar are passed over."""
        if isinstance(event, Planned):
            self._begin(event)
        elif isinstance(event, StepDone):
            self._advance(event)
        elif isinstance(event, Warned):
            self._say(f"warning: {event.text}")
        elif isinstance(event, Finished):
            self._bar.stop()

    def watch(self, events: Iterable[Event]) -> Factors:
        """Show a training loop from its first event to its last; return the trained adapter."""
        factors: Factors = {}
        with self:
            for event in events:  # to the very end, where the loop puts the base back
                self(event)
                if isinstance(event, Finished):
                    factors = event.factors
        return factors

    def _begin(self, event: Planned) -> None:
        self._steps, self._first = event.steps, event.start_step
        self._began = time.monotonic()
        self._task = self._bar.add_task("", total=event.steps, completed=event.start_step, figures="")

    def _advance(self, event: StepDone) -> None:
        if math.isfinite(event.loss):  # else the step was skipped
            self._smooth(event.loss)
        loss = self._loss / self._weight if self._weight else math.nan
        figures = f"loss {loss:.4f}  rate {max(event.rates.values()):.1e}"
        if self._task is not None:
            self._bar.update(self._task, completed=event.step, figures=figures)
        every = max(1, self._steps // _LINES)
        if not self._console.is_terminal and (event.step % every == 0 or event.step == self._steps):
            self._say(f"step {event.step}/{self._steps}  {figures}  {self._left(event.step)}")

    def _smooth(self, loss: float) -> None:
        """An exponential mean without a bias towards its start (as Kingma and Ba 2015, section 3)."""
        self._loss = _MEMORY * self._loss + (1 - _MEMORY) * loss
        self._weight = _MEMORY * self._weight + (1 - _MEMORY)

    def _left(self, step: int) -> str:
        seconds = (time.monotonic() - self._began) / (step - self._first) * (self._steps - step)
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes}:{seconds:02d} left"

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
