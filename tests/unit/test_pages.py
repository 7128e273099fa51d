"""Large tensors have pages of their own: what they held goes back to the system when they go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from veneer import pages

OWN = 1024**2
HOLES = """
import json, sys
from veneer.pages import engage, thresholds
engaged = engage() if "engage" in sys.argv else False
import torch
from veneer.engine.memory import memory_in_use

def held():
    return memory_in_use().now

def round_of_steps():
    # one large and one small by turns; the small ones stay, as what is kept for the backward pass does
    large, small = [], []
    for _ in range(64):
        large.append(torch.ones(600_000)), small.append(torch.ones(20_000))
    return large, small

round_of_steps()
before = held()
large, small = round_of_steps()
with_all = held() - before
large.clear()
without = held() - before
print(json.dumps([engaged, with_all, without, thresholds().own_pages]))
"""


def run(*arguments: str, **environment: str) -> Any:
    code = [sys.executable, "-c", HOLES, *arguments]
    done = subprocess.run(code, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return json.loads(done.stdout)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process whose thresholds nobody set, on a machine that gives large pages to those who ask."""
    monkeypatch.setattr(pages, "_now", pages.Thresholds())
    monkeypatch.setattr(pages, "_set", lambda *_: True)
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    place = tmp_path / "enabled"
    place.write_text("always [madvise] never\n")
    monkeypatch.setattr(pages, "_LARGE_PAGES", place)
    return place


def test_what_large_tensors_held_goes_back_to_the_system() -> None:
    engaged, with_all, without, own_pages = run("engage")
    if not engaged:
        pytest.skip("this machine gives no large pages, or has another C library")
    assert own_pages == OWN
    assert with_all > 100e6
    assert without < 30e6  # the small ones and the heap's end
    assert run()[2] > 100e6  # else this shows nothing: glibc's own thresholds leave holes


def test_it_is_set_once_and_the_plan_is_told(fresh: Path) -> None:
    assert pages.thresholds().move
    assert pages.engage() and pages.engage()
    assert pages.thresholds() == pages.Thresholds(OWN, 32 * OWN, move=False)
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"


def test_without_large_pages_nothing_is_changed_for_it_would_cost_time(fresh: Path) -> None:
    fresh.write_text("always madvise [never]\n")
    assert not pages.engage()
    fresh.unlink()
    assert not pages.engage()
    assert pages.thresholds().move and "THP_MEM_ALLOC_ENABLE" not in os.environ


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")]
)
def test_what_its_user_set_stays(fresh: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert not pages.engage()
    assert pages.thresholds().move


def test_another_c_library_is_left_alone(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_set", lambda *_: False)
    assert not pages.engage()
    assert pages.thresholds().move
