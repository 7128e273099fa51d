"""How bytes are written and read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veneer.errors import UserError
from veneer.plan.memory import ENCODING, STEP, Memory, Phase, as_text, bytes_of, plain, table

MEMORY = Memory(
    "cpu",
    (Phase(ENCODING, 300, {"weights: unet": 300}), Phase(STEP, 5_000_000, {"weights: unet": 4_999_000, "batch": 1000})),
    caches=None,
)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 KB"),
        (12_345, "12.3 KB"),
        (123_456_789, "123 MB"),
        (3_438_083_856, "3.44 GB"),
        (1_400_000_000_000, "1.40 TB"),
        (2_500_000_000_000_000, "2,500 TB"),
    ],
)
def test_bytes_are_written_short(size: int, text: str) -> None:
    assert as_text(size) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("8 gb", 8 * 10**9), ("7.5GiB", 15 * 2**29), ("512MiB", 2**29), ("1000", 1000), ("3kb", 3000)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert bytes_of(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "GB", "8 apples", "-1GB", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--memory: .* is no size; write it as 8GB"):
        bytes_of(text, "--memory")


@given(st.integers(0, 10**16))
def test_what_is_written_is_read_as_nearly_the_same(size: int) -> None:
    assert bytes_of(as_text(size).replace(",", ""), "here") == pytest.approx(size, rel=5e-3)


def test_the_fullest_phase_gives_the_peak() -> None:
    assert (MEMORY.peak, MEMORY.fullest.name, MEMORY.step.name) == (5_000_000, STEP, STEP)


def test_the_text_has_the_step_s_parts_and_the_others_peaks() -> None:
    lines = str(MEMORY).splitlines()
    assert lines[0].split() == ["memory", "on", "CPU", "bytes"]
    assert [line.split()[-2:] for line in lines[1:5]] == [
        ["5.00", "MB"],
        ["1.00", "KB"],
        ["5.00", "MB"],
        ["5.00", "MB"],
    ]
    assert lines[5] == "other peaks: encoding a picture 300 B"


def test_in_a_process_it_says_what_was_there_before_and_what_comes_on_top() -> None:
    grown = replace(MEMORY, phases=tuple(replace(phase, process=phase.tensors + 500) for phase in MEMORY.phases))
    memory = grown.on_top_of(2_000_000)
    assert (memory.before, memory.peak, memory.step.tensors) == (2_000_000, 7_000_500, 5_000_000)
    lines = str(memory).splitlines()
    assert [line.split()[-2:] for line in lines[4:7]] == [["2.00", "MB"], ["500", "B"], ["7.00", "MB"]]
    assert lines[7] == "other peaks: encoding a picture 2.00 MB"


def test_weights_that_are_never_read_are_taken_off() -> None:
    grown = replace(MEMORY, phases=tuple(replace(phase, process=phase.tensors - 100) for phase in MEMORY.phases))
    line = str(grown).splitlines()[5]
    assert line.startswith("less weights that are never read") and line.endswith("100 B")


def test_a_gpu_is_another_memory() -> None:
    memory = replace(MEMORY, device="cuda")
    assert memory.on_top_of(2_000_000) == memory


def test_plain_values_are_what_json_has() -> None:
    told = plain(MEMORY)
    assert json.loads(json.dumps(told)) == told
    assert told["peak"] == 5_000_000 and told["phases"][0]["parts"] == {"weights: unet": 300}


def test_a_table_is_aligned() -> None:
    assert table([("name", "n"), ("a", "1,000"), ("longer", "2")]) == "name        n\na       1,000\nlonger      2"
