"""Helpers of the tests of plans, and for those of whole runs, where equal plans are rehearsed once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny_config
from veneer.config.schema import RunConfig
from veneer.plan.memory import STEP, Memory, Phase
from veneer.plan.plan import Plan
from veneer.plan.rehearsal import BaseMaker, RunInputs, rehearse

__all__ = ["changed", "exact_config", "memory_of", "plan_by_batch_size", "plans_once", "tensors_by_phase"]

_PLANS: dict[str, Plan] = {}


@pytest.fixture(scope="module", autouse=True)
def plans_once() -> Iterator[None]:
    """Import it into a module of tests: a plan takes most of a short run's time, and has tests of its own."""
    with pytest.MonkeyPatch.context() as patched:
        for module in ("plan.assessment", "doctor.readers.memory"):
            patched.setattr(f"veneer.{module}.rehearse", _rehearse_once)
        yield


def _rehearse_once(config: RunConfig, make_base: BaseMaker, inputs: RunInputs) -> Plan:
    """Return the plan of the same base, settings and number of pictures; the file's few words do not count."""
    settings = config.model_dump_json(exclude={"output", "seed", "tracking"})
    # a base that is loaded and an abstract one are two
    key = f"{getattr(make_base, 'func', make_base).__qualname__} {inputs.device} {inputs.pictures} {settings}"
    if key not in _PLANS:
        _PLANS[key] = rehearse(config, make_base, inputs)
    return _PLANS[key]


def exact_config(base: Path, pictures: Path) -> RunConfig:
    """Return a run of the tiny base that keeps all activations, offloads nothing and holds no picture out."""
    return tiny_config(pictures, base=str(base), train={"memory": "exact", "offload": False}, data={"held_out": 0.0})


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    """Return a config with other values in one of its sections."""
    own = getattr(config, section)
    assert values.keys() <= type(own).model_fields.keys()
    return config.model_copy(update={section: own.model_copy(update=values)})


def memory_of(plan: Plan) -> Memory:
    """Return the memory of a plan that has one."""
    assert plan.memory is not None
    return plan.memory


def tensors_by_phase(plan: Plan) -> dict[str, int]:
    """Return the bytes of all tensors in each phase."""
    return {phase.name: phase.tensors for phase in memory_of(plan).phases}


def plan_by_batch_size(config: RunConfig, *_: Any) -> Plan:
    """Return an invented plan in which 10 MB a picture of the batch are all that takes memory."""
    size = 10**7 * config.train.batch_size
    return Plan({}, 0, Memory("cpu", (Phase(STEP, size, {"all": size}, size),), None))
