"""What pictures cost before the first step grows as their number, and a million of them fit."""

from __future__ import annotations

import cProfile
import json
import pstats
import subprocess
import sys

import pytest

from benchmarks.manifest import BUCKET, DRAW, HASH, LIST, measure


def calls(size: int) -> int:
    """How many functions are called, in Python and in C, to list, compare, split, bucket, draw and hash pictures."""
    profile = cProfile.Profile()
    profile.runcall(measure, size)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def test_twice_the_pictures_take_twice_the_calls() -> None:
    """Which leaves out what numpy does within one call: of that only the comparison is not linear (N^1.5)."""
    calls(200)  # what is called once in a process
    none, half, whole = calls(200), calls(1000), calls(1800)
    assert (whole - half) / (half - none) == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_a_hundred_thousand_pictures_take_a_tenth_of_what_a_million_may() -> None:
    """In 60 s and 2 GB a million shall be listed, compared, split, bucketed and drawn."""
    command = [sys.executable, "-m", "benchmarks.manifest", "--size", "100000"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert sum(figures[stage] for stage in (LIST, BUCKET, DRAW, HASH)) < 12  # another's work beside it takes some
    assert figures["GB"] < 0.4
