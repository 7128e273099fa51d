"""Run ``veneer study`` and ``veneer adapter resize`` in a terminal: each training, the bar, the table, the advice."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console

from veneer.adapter.resize import Criterion
from veneer.cli.terminal.algebra import resize_text
from veneer.cli.terminal.console import print_error, print_text, say, say_warning
from veneer.cli.terminal.progress import Progress
from veneer.run.events import PriorSamplingStarted, Resumed, Surveyed
from veneer.study.config import Study
from veneer.study.ranks import RankMeasured, RankStudyOptions, study_ranks
from veneer.study.results import TrialFinished, TrialStarted
from veneer.study.run import run_study, study_folder
from veneer.study.tables import as_markdown
from veneer.train.events import Warned
from veneer.verbs.resize import resize_adapter

__all__ = ["measure_cuts_in_terminal", "resize_in_terminal", "run_study_in_terminal"]


def run_study_in_terminal(study: Study, out: Path | None, on: str) -> bool:
    """Do a study, or the rest of one.

    Returns:
        Whether all its trainings came to an end.
    """
    console = Console()
    folder = out or study_folder(study)
    say(console, f"study {study.name} in {folder}")
    with _StudyCallback(console) as callback:
        result = run_study(study, folder, on=on, callback=callback)
    say(console, "\n" + (folder / "study.md").read_text("utf-8"))
    say(console, "\n".join(f"written: {path}" for path in result.files))
    return not result.table.failures


def resize_in_terminal(
    file: Path, rank: int | None, criterion: Criterion | None, out: Path | None, base: str | None, to: str | None
) -> None:
    """Cut an adapter, and print what was done to its layers on standard error."""
    result = resize_adapter(file, rank, out, criterion=criterion, base=base, to=to)
    print_error(resize_text(result))
    print_text(str(result.path))


def measure_cuts_in_terminal(
    file: Path, ranks: Sequence[int], energies: Sequence[float], out: Path | None, options: RankStudyOptions
) -> None:
    """Measure which cut of an adapter loses nothing, and print the command for the smallest."""
    console = Console()
    with _StudyCallback(console) as callback:
        study = study_ranks(file, ranks, options, energies=energies, out=out, callback=callback)
    say(console, "\n" + as_markdown(study.table))
    if study.advised is not None:
        words = ["adapter", "resize", str(file), *study.advised.options]
        say(console, shlex.join(["veneer", *words, *(["--base", options.base] if options.base else [])]))


class _StudyCallback:
    """A callback that prints a study's events; each training has a bar of its own, closed whatever ends it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._began, self._done = time.monotonic(), 0

    def __enter__(self) -> _StudyCallback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, event: object) -> None:
        if isinstance(event, TrialStarted):
            self._close()
            say(self._console, f"[{event.number}/{event.count}] {event.point}, seed {event.seed}{self._left(event)}")
            self._bar = Progress(self._console)
            self._bar.__enter__()
        elif isinstance(event, TrialFinished):
            self._end(event)
        elif isinstance(event, Warned) and self._bar is None:
            say_warning(self._console, event)
        elif (text := _event_text(event)) is not None:
            say(self._console, text)
        if self._bar is not None:
            self._bar(event)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def _end(self, event: TrialFinished) -> None:
        self._close()
        cached = " (done before)" if event.cached else ""
        if event.loss is None:
            result = f": {event.reason}{cached}" if event.early else f" came to nothing: {event.reason}"
            say(self._console, f"  {event.point}, seed {event.seed}{result}")
            return
        self._done += not event.cached
        say(self._console, f"  {event.point}, seed {event.seed}: held-out loss {event.loss:.4f}{cached}")

    def _left(self, event: TrialStarted) -> str:
        """Return how long the rest will take; empty before the first training is done."""
        if self._done == 0:
            return ""
        left = (time.monotonic() - self._began) / self._done * (event.count - event.number + 1)
        return f", about {left / 60:.0f} min left"


def _event_text(event: object) -> str | None:
    if isinstance(event, Surveyed):
        return f"pictures: {event.train} to train on, {event.held_out} held out, {len(event.rejected)} left out"
    if isinstance(event, PriorSamplingStarted):
        return f"painting {event.count} pictures of {event.prompt!r} into {event.folder}"
    if isinstance(event, Resumed):
        return f"  going on after step {event.step}"
    if isinstance(event, RankMeasured):
        return f"{event.point}: held-out loss {event.loss:.4f}, {event.retained:.1%} of delta W's norm kept"
    return None
