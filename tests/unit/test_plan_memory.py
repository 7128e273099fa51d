"""The memory of a run as data and as text."""

from __future__ import annotations

from dataclasses import replace

from veneer.plan.memory import ENCODING, STEP, Memory, Phase

MEMORY = Memory(
    "cpu",
    (Phase(ENCODING, 300, {"weights: unet": 300}), Phase(STEP, 5_000_000, {"weights: unet": 4_999_000, "batch": 1000})),
    caches=None,
)


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
    assert line.startswith("minus weights that are never read") and line.endswith("100 B")


def test_a_gpu_is_another_memory() -> None:
    memory = replace(MEMORY, device="cuda")
    assert memory.on_top_of(2_000_000) == memory
