"""Whole runs whose plans are not what is tested: equal ones are rehearsed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch

from veneer.config.schema import RunConfig
from veneer.plan.account import Plan
from veneer.plan.rehearsal import Pictures, Sketch, rehearse

__all__ = ["plans_once"]

_PLANS: dict[str, Plan] = {}
_NO_METADATA: Mapping[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def plans_once() -> Iterator[None]:
    """Import it into a module of tests: a plan takes most of a short run's time, and has tests of its own."""
    with pytest.MonkeyPatch.context() as patched:
        for module in ("veneer.plan.rehearsal", "veneer.doctor.readers.memory"):
            patched.setattr(f"{module}.rehearse", _rehearsed_once)
        yield


def _rehearsed_once(
    config: RunConfig,
    sketch: Sketch,
    device: torch.device,
    pictures: Pictures | None,
    metadata: Mapping[str, str] = _NO_METADATA,
) -> Plan:
    """The plan of the same base, settings and number of pictures; the file's few words are left out of account."""
    settings = config.model_dump_json(exclude={"output", "seed", "tracking"})
    # a base that is loaded and one that is only sketched are two
    known = f"{sketch.__qualname__} {device} {pictures} {settings}"
    if known not in _PLANS:
        _PLANS[known] = rehearse(config, sketch, device, pictures, metadata)
    return _PLANS[known]
