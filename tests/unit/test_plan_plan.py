"""A plan as data, as JSON holds it."""

from __future__ import annotations

import json

import pytest

from veneer.adapter.targets import BlockCoverage
from veneer.plan.memory import STEP, Memory, Phase
from veneer.plan.plan import Disk, NetworkPlan, Plan, Schedule, TimestepPlan

MEMORY = Memory("cpu", (Phase(STEP, 300, {"weights: unet": 300}, process=500),), caches=None)
BLOCKS = BlockCoverage(5, 25, ("singles.0-19",))
NETWORKS = {"unet": NetworkPlan(10, 1000, {"to_q": 1}, {"to_q": 10}, BLOCKS)}


NO_BLOCKS = {"blocks": 0, "offloaded": 0}


def test_a_plan_is_written_with_the_sums_that_a_reader_wants() -> None:
    values = Plan(NETWORKS, 40, MEMORY, Schedule(100, 4, 2, 50), Disk(1000, 2, 40)).as_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["networks"]["unet"] == {
        "trainable": 10,
        "total": 1000,
        "layers": {"to_q": 1},
        "targets": {"to_q": 10},
        "blocks": {"touched": 5, "total": 25, "left_out": ["singles.0-19"]},
    }
    assert (values["trainable"], values["total"], values["share"], values["file_bytes"]) == (10, 1000, 0.01, 40)
    phase = {"name": STEP, "tensors": 300, "parts": {"weights: unet": 300}, "process": 500, "peak": 500}
    assert values["memory"] == {
        "device": "cpu",
        "phases": [phase],
        "caches": None,
        "before": 0,
        "peak": 500,
        **NO_BLOCKS,
    }
    schedule = {"steps": 100, "batch": 4, "accumulate": 2, "pictures": 50, "texts": None, "masks": 0}
    schedule |= {"shown": 800, "epochs": 16.0}
    assert values["schedule"] == schedule
    assert values["disk"] == {"checkpoint": 1000, "keep": 2, "result": 40, "total": 2040}


@pytest.mark.parametrize(
    ("timesteps", "line"),
    [
        (
            TimestepPlan("logit_normal", 0.0, 1.0, 3.0, False, own_density=True, own_shift=True),
            "timesteps: logit-normal, shift 3, the base's own",
        ),
        (
            TimestepPlan("uniform", None, None, 1.0, False, own_density=False, own_shift=False),
            "timesteps: uniform, no shift, as configured",
        ),
        (
            TimestepPlan("logit_normal", 0.0, 1.5, 3.1582, True, own_density=False, own_shift=True),
            "timesteps: logit-normal with mean 0 and deviation 1.5 (as configured), shift 3.16 at this resolution (the "
            "base's own)",
        ),
    ],
)
def test_timesteps_are_told_in_one_line(timesteps: TimestepPlan, line: str) -> None:
    assert str(timesteps) == line
    assert line in str(Plan(NETWORKS, 40, timesteps=timesteps))


def test_blocks_are_told_in_one_line() -> None:
    assert "blocks touched: unet 5 of 25 (none of singles.0-19)" in str(Plan(NETWORKS, 40)).splitlines()


def test_what_was_not_planned_is_null() -> None:
    values = Plan(NETWORKS, 40).as_dict()
    assert (values["memory"], values["schedule"], values["disk"]) == (None, None, None)
