"""Large tensors have pages of their own, which are returned to the system when they are freed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny_config
from veneer import malloc
from veneer.__main__ import main
from veneer.errors import UserError
from veneer.family.loading import load_base
from veneer.plan import probe as probing
from veneer.plan.probe import probe

LARGE, SMALL = 4 * 10**9, 10**8
HOLES = """
import json, sys
from veneer.malloc import request_large_pages, set_thresholds
requested = request_large_pages() if "request" in sys.argv else False
import torch
from veneer.engine.memory_usage import read_memory_usage

set_thresholds(int(sys.argv[1]))

def current():
    return read_memory_usage().current

def round_of_steps():
    # one large and one small by turns; the small ones stay, as what is saved for the backward pass does
    large, small = [], []
    for _ in range(64):
        large.append(torch.ones(600_000)), small.append(torch.ones(20_000))
    return large, small

round_of_steps()
before = current()
large, small = round_of_steps()
with_all = current() - before
large.clear()
without = current() - before
print(json.dumps([requested, with_all, without]))
"""


def run(*arguments: str, **environment: str) -> Any:
    code = [sys.executable, "-c", HOLES, *arguments]
    # what another test requested in this process is not for that one
    own = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(code, capture_output=True, text=True, check=True, env={**own, **environment})
    return json.loads(done.stdout)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has not requested large pages, on a machine that gives them on request."""
    monkeypatch.setattr(malloc, "_requested", False)
    monkeypatch.setattr(malloc, "_mallopt", lambda: lambda name, value: 1)
    for name in ("THP_MEM_ALLOC_ENABLE", *malloc._OVERRIDES):
        monkeypatch.delenv(name, raising=False)
    place = tmp_path / "enabled"
    place.write_text("always [madvise] never\n")
    monkeypatch.setattr(malloc, "_LARGE_PAGES", place)
    return place


@pytest.mark.slow
def test_on_a_large_base_the_memory_of_large_tensors_is_returned_to_the_system() -> None:
    requested, with_all, without = run(str(LARGE), "request")
    if not requested:
        pytest.skip("this machine gives no large pages, or has another C library")
    assert with_all > 100e6
    assert without < 30e6  # the small ones and the heap's end
    assert run(str(LARGE))[2] > 100e6  # else this shows nothing: glibc's own thresholds leave holes


def test_thresholds_depend_on_the_request_and_on_the_base(fresh: Path) -> None:
    assert not malloc.large_pages_requested()
    assert malloc.thresholds_for(LARGE).dynamic
    assert malloc.request_large_pages() and malloc.request_large_pages()
    assert malloc.large_pages_requested()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    assert malloc.thresholds_for(LARGE) == malloc.Thresholds(1024**2, 32 * 1024**2, dynamic=False)
    assert malloc.thresholds_for(SMALL) == malloc.Thresholds()


def test_a_base_that_is_loaded_sets_what_its_size_asks_for(
    fresh: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[tuple[int, int]]()
    monkeypatch.setattr(malloc, "_mallopt", lambda: lambda name, value: calls.append((name, value)))
    load_base(str(tiny_base))
    malloc.request_large_pages()
    load_base(str(tiny_base))
    assert calls == []
    monkeypatch.setattr(malloc, "_LARGE_BASE", 10**5)  # bytes, of which the tiny base has more
    load_base(str(tiny_base))
    assert calls == [(-3, 1024**2), (-1, 32 * 1024**2)]


def test_a_probe_takes_its_memory_as_this_process_does(
    fresh: Path, tiny_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = list[list[str]]()

    def start(command: list[str], **how: Any) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, '{"before": 1, "peaks": {}, "seconds": 1.0}', "")

    monkeypatch.setattr("veneer.plan.probe.subprocess.run", start)
    probe(tiny_config(tiny_pictures))
    malloc.request_large_pages()
    probe(tiny_config(tiny_pictures))
    monkeypatch.setattr(malloc, "_requested", False)
    for command in commands:
        monkeypatch.setattr(sys, "argv", command[2:])
        monkeypatch.setattr(sys, "stdin", io.StringIO('{"base": ""}'))
        with suppress(UserError):
            probing.main()
        assert malloc.large_pages_requested() == (command is commands[1])


def test_the_command_line_requests_them(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["veneer", "adapter", "info", "nowhere.safetensors"])
    assert main() == 2
    assert malloc.large_pages_requested()


def test_without_large_pages_nothing_is_changed_for_it_would_cost_time(fresh: Path) -> None:
    fresh.write_text("always madvise [never]\n")
    assert not malloc.request_large_pages()
    fresh.unlink()
    assert not malloc.request_large_pages()
    assert malloc.thresholds_for(LARGE).dynamic and "THP_MEM_ALLOC_ENABLE" not in os.environ


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")]
)
def test_what_its_user_set_stays(fresh: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert not malloc.request_large_pages()
    assert malloc.thresholds_for(LARGE).dynamic


def test_another_c_library_is_left_alone(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc, "_mallopt", lambda: None)
    assert not malloc.request_large_pages()
    malloc.set_thresholds(LARGE)
    assert malloc.thresholds_for(LARGE).dynamic
