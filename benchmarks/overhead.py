"""Measure what a run spends on what a person sees of it: the bar, run.jsonl, TensorBoard, sheets and their strip.

python -m benchmarks.overhead                measure a run of 1,000 steps on the bundled base, write results and page
python -m benchmarks.overhead --steps 200    a shorter one: what is done once, such as imports, weighs more

It is no comparison of two runs, whose noise is larger than what is measured: one run is timed inside and out. All that
shows, told to a terminal of 80 columns, is timed on its way, in whichever thread; painting the samples is not, for that
is work that its user asked for.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

from rich.console import Console
from rich.live import Live

import veneer
from benchmarks.page import PAGE, figures_of, keep, machine, show
from tools.publish import publish
from veneer.cli.terminal.progress import Progress
from veneer.config.schema import RunConfig
from veneer.run import sampling
from veneer.run.log import EventBus, EventLog
from veneer.run.trackers.callback import TrackerCallback
from veneer.train.events import Finished, TrainingStarted

NAME = "overhead"
WATCHING_PAGE = PAGE.with_name("watching.md")
BAR, BAR_THREAD, LOG, TRACKER, SHEETS = "bar", "bar, in its thread", "run.jsonl", "TensorBoard", "sheets and strip"
WHAT = {
    BAR: "the bar, told of each event",
    BAR_THREAD: "the bar drawn, once a second, in a thread of its own",
    LOG: "`run.jsonl`",
    TRACKER: "TensorBoard, its import with it",
    SHEETS: "sample sheets put together and written, and the strip of them",
}


class Meter:
    """A meter that adds up seconds by what they were spent on; what is timed within another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, name: str | None, function: Callable[..., Any], clock: Callable[[], float]) -> Callable[..., Any]:
        """Return ``function``, timed; without a name its seconds count for nothing, here and in what calls it."""

        def call(*arguments: Any, **options: Any) -> Any:
            began = clock()
            self._inner.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                taken, inner = clock() - began, self._inner.pop()
                self._inner[-1] += taken
                if name is not None:
                    self.seconds[name] += taken - inner

        return call


@contextmanager
def metering(meter: Meter) -> Iterator[None]:
    """Time all that shows within the block."""
    drawing = Meter()  # another thread's: its seconds are no part of the main one's, and only its own work counts
    timed: list[tuple[Any, str, str | None]] = [
        (Progress, "__call__", BAR),
        (EventLog, "__call__", LOG),
        (TrackerCallback, "__call__", TRACKER),
        (TrackerCallback, "__exit__", TRACKER),
        (sampling.SampleWriter, "write", SHEETS),
        (sampling, "paint", None),
        (EventBus, "__call__", LOG),
    ]
    with ExitStack() as patched:
        for place, attribute, name in timed:
            call = meter.timed(name, getattr(place, attribute), time.perf_counter)
            patched.enter_context(mock.patch.object(place, attribute, _method(call)))
        refresh = drawing.timed(BAR_THREAD, Live.refresh, time.thread_time)
        patched.enter_context(mock.patch.object(Live, "refresh", _method(refresh)))
        yield
    meter.seconds |= drawing.seconds


def _method(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a plain function, which a class makes a method of."""

    def method(*arguments: Any, **options: Any) -> Any:
        return call(*arguments, **options)

    return method


def measure(config: RunConfig) -> dict[str, Any]:
    """Time a run's training, from its start to its last step, and each thing in it that shows."""
    meter, times = Meter(), {}
    with open(os.devnull, "w") as nowhere, metering(meter), Progress(_terminal(nowhere)) as progress:

        def callback(event: object) -> None:
            if isinstance(event, (TrainingStarted, Finished)):
                times[type(event)] = time.perf_counter()
            progress(event)

        veneer.run_training(config, callback=callback)
    training = times[Finished] - times[TrainingStarted]
    shown = {name: round(meter.seconds[name], 4) for name in WHAT}
    return {"machine": machine(), "steps": config.train.max_steps, "training": round(training, 2), "shown": shown}


def _terminal(nowhere: TextIO) -> Console:
    return Console(file=nowhere, force_terminal=True, width=80)


def config_in(folder: Path, steps: int) -> RunConfig:
    """Configure the example's pictures, batch 4, a sheet of four pictures every hundredth step."""
    return veneer.build_config(
        {
            "base": "bundled",
            "output": {"dir": str(folder / "run")},
            "data": {"sources": [{"path": str(veneer.demo_path() / "train")}], "held_out": 0.0},
            "train": {"max_steps": steps, "learning_rate": 2e-3},
            "sample": {"every": 100, "steps": 10, "prompts": ["a turtle", "a violin", "a castle", "a carrot"]},
            "tracking": {"trackers": ["tensorboard"]},
        },
        origin="benchmark",
    )


def section(figures: dict[str, Any]) -> str:
    """Write the page's section from the figures."""
    shown, training = figures["shown"], figures["training"]
    rows = [
        f"On {figures['machine']}. One run of {figures['steps']:,} steps on the bundled base, batch 4, which took "
        f"{training:,.0f} s; a sheet of four pictures every 100 steps.",
        "",
        "| what | seconds | share of the run |",
        "| --- | --- | --- |",
        *(f"| {text} | {shown[name]:.2f} | {shown[name] / training:.2%} |" for name, text in WHAT.items()),
        f"| all | {sum(shown.values()):.2f} | {sum(shown.values()) / training:.2%} |",
        "",
    ]
    return "\n".join(rows)


def sentence(figures: dict[str, Any]) -> str:
    """Put the one figure into a sentence."""
    share = sum(figures["shown"].values()) / figures["training"]
    return f"of a run of {figures['steps']:,} steps on the bundled base, {share:.2%} went into what it shows.\n"


def main() -> None:
    """Measure, store the figures and publish them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(config_in(Path(folder), parser.parse_args().steps))
    keep(NAME, figures)
    publish(WATCHING_PAGE, sentence(figures), NAME)
    show(NAME, section(figures_of(NAME)))


if __name__ == "__main__":
    main()
