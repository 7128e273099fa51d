"""Plans beside the memory of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plans import changed, exact_config, memory_of, plan_by_batch_size, tensors_by_phase
from veneer.config.schema import RunConfig
from veneer.data.preflight import survey
from veneer.family.protocol import Family
from veneer.plan import assessment
from veneer.plan.assessment import assess_config, assess_run, make_plan

MB = 10**6


@pytest.fixture(scope="module")
def config(tiny_base: Path, tiny_pictures: Path) -> RunConfig:
    return exact_config(tiny_base, tiny_pictures)


@pytest.mark.slow
def test_a_plan_from_configurations_is_that_of_the_loaded_base(config: RunConfig, family: Family) -> None:
    plan, ahead = make_plan(config, family, survey(config.data)), assess_config(config, count_pictures=True, limit=None)
    assert ahead.fits and ahead.verdict.startswith("fits: ") and ahead.remedies == () and ahead.warning is None
    assert tensors_by_phase(ahead.plan) == tensors_by_phase(plan)
    assert (ahead.plan.networks, ahead.plan.schedule, ahead.plan.disk) == (plan.networks, plan.schedule, plan.disk)
    growth = [[phase.peak - memory_of(p).before for phase in memory_of(p).phases] for p in (ahead.plan, plan)]
    assert growth[0] == pytest.approx(growth[1], rel=1e-2)


def test_what_does_not_fit_gets_remedies(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assessment, "rehearse", plan_by_batch_size)
    monkeypatch.setattr(assessment, "process_memory", lambda: 100 * MB)
    wanted = changed(config, "train", batch_size=8)
    found = assess_config(wanted, count_pictures=True, limit=150 * MB)
    assert memory_of(found.plan).peak == 180 * MB and not found.fits
    assert [(dict(r.changes), r.peak) for r in found.remedies] == [
        ({"train.batch_size": 4, "train.gradient_accumulation_steps": 2}, 140 * MB)
    ]


def test_a_run_that_does_not_fit_has_a_warning(
    config: RunConfig, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assessment, "rehearse", plan_by_batch_size)
    monkeypatch.setattr(assessment, "_CACHE", {})
    fitting = assess_run(config, family, survey(config.data), {})
    before = memory_of(fitting.plan).before
    assert fitting.warning is None and memory_of(fitting.plan).peak > before
    monkeypatch.setattr(assessment, "free_memory", lambda device: before + 15 * MB)
    warning = assess_run(config, family, survey(config.data), {}).warning
    assert warning is not None and warning.startswith("does not fit: ")
    assert "; would fit: train.batch_size=1 train.gradient_accumulation_steps=2 (" in warning
