"""Time several ways to do the same thing in turn on one machine, and compute the ratios between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import linear_regression, median, quantiles
from typing import Any, TypeAlias

import torch

__all__ = ["Ratio", "Seconds", "interleaved", "ratio", "seconds_of_steps", "slope", "timed"]

Seconds: TypeAlias = "dict[str, list[float]]"
"""The seconds of each way, one number a round."""


def interleaved(
    ways: Mapping[str, Callable[[], object]], rounds: int, undo: Mapping[str, Callable[[], object]] | None = None
) -> Seconds:
    """Time each way once a round, after one untimed round; every round begins with another way.

    So a busy moment of the machine meets all of them, and none is always the first.

    Args:
        ways: the functions that are timed, by name.
        rounds: how often each is timed.
        undo: functions that are called after a way, untimed.
    """
    seconds: Seconds = {name: [] for name in ways}
    names, undo = list(ways), undo or {}
    for turn in range(rounds + 1):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            taken = timed(ways[name])
            undo.get(name, _nothing)()
            if turn:
                seconds[name].append(taken)
    return seconds


def _nothing() -> None:
    pass


def timed(way: Callable[[], object]) -> float:
    """Return the seconds that one call takes, including what it left the GPU to do."""
    _wait()
    began = time.perf_counter()
    way()
    _wait()
    return time.perf_counter() - began


def seconds_of_steps(step: Callable[[], object], warm_up: int, count: int, limit: float) -> list[float]:
    """Return the seconds of each of some steps that follow one another without a wait in between, as in a training.

    On a GPU they are the times between events in its own queue, so a step that waits for the GPU is as long as one that
    does not only if the GPU has no pause meanwhile.

    Args:
        step: does one.
        warm_up: steps before, which are not timed.
        count: steps that are timed, at most.
        limit: seconds after which no step is begun, but for the first.
    """
    for _ in range(warm_up):
        step()
    _wait()
    ends, marks = time.perf_counter() + limit, [_mark()]
    while len(marks) <= count and (len(marks) == 1 or time.perf_counter() < ends):
        step()
        marks.append(_mark())
    _wait()
    return [_between(first, second) for first, second in pairwise(marks)]


def _mark() -> Any:
    """Return this moment: an event in the GPU's queue, or the clock."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(first: Any, second: Any) -> float:
    return float(second - first if isinstance(first, float) else first.elapsed_time(second) / 1000)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Ratio:
    """The ratio of two ways: the median of the rounds' own ratios, and their quartiles."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Divide seconds ``above`` by seconds ``below``, round by round."""
    each = [one / other for one, other in zip(above, below, strict=True)]
    if len(each) == 1:
        return Ratio(each[0], each[0], each[0])
    low, _, high = quantiles(each, n=4, method="inclusive")
    return Ratio(median(each), low, high)


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Fit the power of the size that the values grow with: a least-squares line on logarithmic axes."""
    return linear_regression([math.log(size) for size in sizes], [math.log(value) for value in values]).slope
