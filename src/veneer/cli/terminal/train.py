"""Run ``veneer train`` in a terminal: the pictures, the plan, the bar, the score."""

from __future__ import annotations

from rich.console import Console

from veneer.cli.terminal.console import say
from veneer.cli.terminal.progress import Progress
from veneer.cli.terminal.report import report_line
from veneer.config.schema import RunConfig
from veneer.evaluate.results import Evaluated
from veneer.printable import in_one_line
from veneer.run.events import (
    AdapterSaved,
    BestAdapterSaved,
    EarlyStopped,
    Planned,
    PriorSamplingStarted,
    Resumed,
    SamplesSaved,
    Surveyed,
    TrackingStarted,
)
from veneer.run.result import Result
from veneer.run.resume import Resume
from veneer.run.session import run_training
from veneer.train.distributed import launched

__all__ = ["run_in_terminal"]


def run_in_terminal(config: RunConfig, *, overwrite: bool, resume: Resume | None) -> None:
    """Do a whole run, or the rest of one, and print its events; of several processes the first prints."""
    console = Console(quiet=launched()[0] > 0)
    with Progress(console) as progress:

        def callback(event: object) -> None:
            text = _event_text(event)
            if text is not None:
                say(console, text)
            progress(event)

        result = run_training(config, overwrite=overwrite, resume=resume, callback=callback)
    say(console, _result_text(result))
    if not console.quiet:
        say(console, report_line(config.output.dir))


def _event_text(event: object) -> str | None:
    """Return the lines for an event; None if the bar alone shows it."""
    if isinstance(event, Surveyed):
        return _survey_text(event)
    if isinstance(event, PriorSamplingStarted):
        return f"painting {event.count} pictures of {event.prompt!r} into {event.folder}"
    if isinstance(event, Resumed):
        return f"going on after step {event.step}, from {event.path}"
    if isinstance(event, Planned):
        return str(event.plan)
    if isinstance(event, Evaluated):
        best = "the best so far" if event.best_step == event.step else f"the best is that of step {event.best_step}"
        return f"after step {event.step}: {event.held_out}; {best}\n  {event.gap}"
    if isinstance(event, (EarlyStopped, BestAdapterSaved)):
        return str(event)
    if isinstance(event, TrackingStarted):
        return f"curves: {event.shown_by}"
    if isinstance(event, SamplesSaved) and event.step == 0:
        return f"samples: {event.timelapse}, which grows with the run"
    if isinstance(event, AdapterSaved):
        return f"saved {event.path} ({event.format}, sha256 {event.sha256})"
    return None


def _survey_text(event: Surveyed) -> str:
    lines = [f"pictures: {event.train} to train on, {event.held_out} held out, {len(event.rejected)} left out"]
    lines += [in_one_line(f"  left out: {path}: {reason}") for path, reason in event.rejected.items()]
    lines += [in_one_line(f"  note: {note}") for note in event.notes]
    return "\n".join(lines)


def _result_text(result: Result) -> str:
    score = "no picture was held out, so there is no score" if result.score is None else str(result.score)
    sheet = "" if result.sheet is None else f"\nsheet: {result.sheet}"
    return f"{score}\nadapter: {result.adapter}{sheet}"
