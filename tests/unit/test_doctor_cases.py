"""The doctor is judged by real runs: what was recorded of them is in ``tests/golden/doctor``.

``python -m tools.doctor_cases --work FOLDER`` makes the runs again and records them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.bases import Defaults
from tools.doctor_cases.__main__ import PAGE, is_right, table
from tools.doctor_cases.cases import CASES, Case, planned_config
from tools.doctor_cases.records import RECORDS, record_path
from veneer.config.load import resolve
from veneer.config.schema import RunConfig
from veneer.doctor.diagnosis import RULES, Diagnosis, diagnose
from veneer.doctor.evidence import Evidence, read_evidence
from veneer.doctor.finding import apply_change
from veneer.errors import UserError

_SIDE = 64
"""Pixels of the bundled base."""
FITTED = [case for case in CASES if case.is_fitted]
FAULTY = [case for case in CASES if case.expected and not case.is_fitted]
HEALTHY = [case for case in CASES if not case.expected and not case.is_fitted]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def evidence_of(case: Case) -> Evidence:
    return read_evidence(record_path(case).read_bytes())


def value_of(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return value


def problem_names(diagnosis: Diagnosis) -> list[str]:
    return [finding.name for finding in diagnosis.problems]


def wrong_diagnoses(cases: list[Case]) -> dict[str, list[str]]:
    """Problems found in each run that is not diagnosed right."""
    return {case.name: problem_names(diagnose(evidence_of(case))) for case in cases if not is_right(case)}


# the bars


def test_of_twenty_faulty_runs_at_least_eighteen_are_diagnosed_right() -> None:
    assert len(FAULTY) >= 20
    wrong = wrong_diagnoses(FAULTY)
    assert len(wrong) <= 0.1 * len(FAULTY), wrong


def test_of_ten_healthy_runs_no_problem_is_found() -> None:
    assert len(HEALTHY) >= 10
    assert wrong_diagnoses(HEALTHY) == {}


def test_every_kind_of_problem_is_among_the_faulty_runs() -> None:
    # the problems that the doctor must know at least
    required = {"underfit", "out_of_memory", "overfit", "rate_too_high", "rate_too_low", "text_encoder_overcooked"}
    required |= {"captions_leak_style", "captions_wrong", "dead_adapter", "nan"}
    assert required <= {name for case in FAULTY for name in case.expected}


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("overfit-eight", "overfit"),
        ("underfit-five-steps", "underfit"),
        ("captions-slipped", "captions_wrong"),
    ],
)
def test_those_that_must_be_named(name: str, finding: str) -> None:
    case = next(case for case in CASES if case.name == name)
    assert problem_names(diagnose(evidence_of(case)))[0] == finding


def test_the_limits_fit_the_runs_they_were_chosen_on() -> None:
    assert len(wrong_diagnoses(FITTED)) <= 1


# the split


def test_no_run_that_judges_shares_seed_or_held_out_pictures_with_one_that_was_fitted_on() -> None:
    fitted, judged = (
        {(evidence_of(case).config.seed, str(evidence_of(case).config.data.held_out)) for case in cases}
        for cases in (FITTED, [*FAULTY, *HEALTHY])
    )
    assert {seed for seed, _ in fitted}.isdisjoint(seed for seed, _ in judged)
    # shares are of the run's own pictures
    folders = [{held for _, held in each if held.startswith("held_out")} for each in (fitted, judged)]
    assert folders[0] and folders[1] and folders[0].isdisjoint(folders[1])


# the records


def test_every_run_is_recorded_and_nothing_else() -> None:
    assert {path.stem for path in RECORDS.glob("*.json")} == {case.name for case in CASES}


@every_case
def test_a_record_is_of_its_run(case: Case) -> None:
    """Of the very settings that the case has now: only what training resolves is added.

    What was not resolved yet when the run was recorded is so here.
    """
    assert resolve(evidence_of(case).config, Defaults(_SIDE)) == resolve(planned_config(case), Defaults(_SIDE))


@every_case
def test_every_change_is_one_that_a_configuration_can_take(case: Case) -> None:
    evidence = evidence_of(case)
    for finding in diagnose(evidence).findings:
        for change in finding.changes:
            try:
                changed = apply_change(evidence.config, change)
            except UserError as fault:
                pytest.fail(f"{finding.name}: {change.override}: {fault}")
            assert changed != evidence.config, change.override
            # as it was meant, to the last digit but rounding
            value = pytest.approx(change.value, rel=1e-9) if isinstance(change.value, float) else change.value
            assert change.value == () or value_of(changed, change.key) == value


@every_case
def test_a_finding_is_named_after_its_rule(case: Case) -> None:
    evidence = evidence_of(case)
    assert all(finding.name == rule.__name__ for rule in RULES if (finding := rule(evidence)) is not None)


def test_nothing_of_the_machine_is_recorded() -> None:
    for path in RECORDS.glob("*.json"):
        text = path.read_text("utf-8")
        assert "/work" not in text and "/tmp" not in text and "/home" not in text and '"/' not in text, path


# the page


def test_the_page_has_the_figures_that_the_records_give() -> None:
    assert table().strip() in Path(PAGE).read_text("utf-8")
