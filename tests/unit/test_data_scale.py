"""What pictures cost before the first step grows as their number, and a million of them fit."""

from __future__ import annotations

import cProfile
import json
import pstats
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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


LOOK_OVER = """
import sys
from pathlib import Path
from veneer.data.inspection import inspect_pictures
from veneer.data.sources.protocol import Entry, Listing

entries = tuple(Entry(path, ("a",)) for path in sorted(Path(sys.argv[1]).iterdir()))
found = inspect_pictures([Listing(entries)], "white", workers=2)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(found.samples), int(peak.split()[1]) * 1024)
"""


@pytest.mark.slow
def test_the_largest_pictures_are_looked_over_in_two_threads_within_a_gigabyte(tmp_path: Path) -> None:
    """The memory of each is returned before the next is decoded: with Pillow's own blocks malloc kept much of it."""
    for number in range(4):
        picture = Image.linear_gradient("L").resize((9000, 9800)).convert("RGB")
        picture.putpixel((number, number), (255, 0, 0))
        picture.save(tmp_path / (f"{number}.png" if number % 2 else f"{number}.jpg"))
    command = [sys.executable, "-c", LOOK_OVER, str(tmp_path)]
    count, peak = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert count == 4 and peak < 0.75e9
