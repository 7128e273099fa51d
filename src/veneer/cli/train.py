"""``veneer train`` on a screen: the pictures, the plan, the bar, the score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from veneer.cli.progress import Progress
from veneer.cli.report import report_line
from veneer.config.schema import RunConfig
from veneer.errors import UserError
from veneer.evaluate.results import Evaluated
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
from veneer.run.resume import Resume
from veneer.run.session import Result, run_training
from veneer.train.distributed import launched

__all__ = ["resume_of", "train_command"]


def train_command(config: RunConfig, *, overwrite: bool, resume: Resume | None) -> None:
    """Do a whole run, or the rest of one, and say what happens; of several processes the first does."""
    console = Console(quiet=launched()[0] > 0)
    with Progress(console) as progress:

        def callback(event: object) -> None:
            text = _text(event)
            if text is not None:
                _say(console, text)
            progress(event)

        result = run_training(config, overwrite=overwrite, resume=resume, callback=callback)
    _say(console, _result_text(result))
    if not console.quiet:
        _say(console, report_line(config.output.dir))


def resume_of(checkpoint: str | None, allow: Sequence[str]) -> Resume | None:
    """What ``--resume`` and ``--allow-change`` ask for; no name at ``--resume`` means the newest checkpoint."""
    if checkpoint is None:
        if allow:
            raise UserError("means something only with --resume", where="--allow-change")
        return None
    return Resume(Path(checkpoint) if checkpoint else None, tuple(allow))


def _text(event: object) -> str | None:
    """What is said of an event beside the bar."""
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
        return f"saved {event.path} (sha256 {event.sha256}); painting and measuring"
    return None


def _survey_text(event: Surveyed) -> str:
    lines = [f"pictures: {event.train} to train on, {event.held_out} held out, {len(event.rejected)} left out"]
    lines += [f"  left out: {path}: {reason}" for path, reason in event.rejected.items()]
    lines += [f"  note: {note}" for note in event.notes]
    return "\n".join(lines)


def _result_text(result: Result) -> str:
    score = "no picture was held out, so there is no score" if result.score is None else str(result.score)
    return f"{score}\nadapter: {result.adapter}\nsheet: {result.sheet}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
