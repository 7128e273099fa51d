"""Make the runs that the doctor is judged by: ``python -m tools.doctor_cases --work FOLDER``.

What the doctor sees of each run is recorded in ``tests/golden/doctor``, which the tests read. A run that is recorded
already is not made again, so an interrupted command continues where it was; ``--again`` makes it anew, and
``--only NAME`` makes one.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from tools.doctor_cases.cases import CASES, Case
from tools.doctor_cases.folders import split_held_out
from tools.doctor_cases.records import ROOT, record, record_path
from tools.publish import publish
from veneer.doctor.diagnosis import Diagnosis, diagnose
from veneer.doctor.evidence import Evidence, read_evidence
from veneer.doctor.finding import interval

PAGE = ROOT / "docs" / "doctor.md"


def main() -> None:
    """Make the runs that are not recorded, print what the doctor finds in each run, and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and runs")
    parser.add_argument("--only", metavar="NAME", help="one run")
    parser.add_argument("--again", action="store_true", help="make runs that are recorded already, too")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    os.chdir(options.work)  # so that recorded paths are relative
    split_held_out()
    for case in CASES:
        if options.only in (None, case.name):
            began = time.monotonic()
            if options.again or not record_path(case).exists():
                record(case)
            print(f"{case.name:24} {_summary(case)}  {time.monotonic() - began:.0f} s", flush=True)
    publish(PAGE, table())


def table() -> str:
    """Return the results of all recorded runs, as the doctor's page has them."""
    recorded = [case for case in CASES if record_path(case).exists()]
    fitted = [case for case in recorded if case.is_fitted]
    judged = [case for case in recorded if not case.is_fitted]
    faulty, healthy = ([case for case in judged if bool(case.expected) is kind] for kind in (True, False))
    named, passed, fitted_right = (sum(map(is_right, cases)) for cases in (faulty, healthy, fitted))
    return f"""\
Of {len(faulty)} runs that were made with a problem, **{named}** have it named first. In **{len(healthy) - passed}** of
{len(healthy)} healthy runs a problem is found. No limit was chosen on any of these.

{_rows(faulty)}

{_rows(healthy)}

The runs that the limits were chosen on, of which {fitted_right} of {len(fitted)} are diagnosed right:

{_rows(fitted)}
"""


def _rows(cases: Sequence[Case]) -> str:
    rows = [f"| `{case.name}` | {_expected(case)} | {_found(case)} | {_first_evidence(case)} |" for case in cases]
    return "\n".join(["| run | made to have | found | seen by |", "| --- | --- | --- | --- |", *rows])


def _expected(case: Case) -> str:
    return " or ".join(case.expected) or "nothing"


def _found(case: Case) -> str:
    problems = ", ".join(_problems(case)) or "nothing"
    return problems if is_right(case) else f"**wrong:** {problems}"


def _first_evidence(case: Case) -> str:
    """Return the first evidence of the first problem; for a healthy run, its held-out score."""
    evidence, diagnosis = _diagnosis(case)
    score = evidence.held_out
    healthy = "no picture was held out" if score is None else f"the held-out loss changes by {interval(score)}"
    problems = diagnosis.problems
    return (problems[0].evidence[0] if problems else healthy).replace("|", "\\|")


def _summary(case: Case) -> str:
    return f"{'right' if is_right(case) else 'WRONG'}: {', '.join(_problems(case)) or 'healthy'}"


def is_right(case: Case) -> bool:
    """Return whether the first problem found is an expected one, or none is found in a healthy run."""
    problems = _problems(case)
    return problems[0] in case.expected if case.expected and problems else not case.expected and not problems


def _problems(case: Case) -> list[str]:
    return [finding.name for finding in _diagnosis(case)[1].problems]


def _diagnosis(case: Case) -> tuple[Evidence, Diagnosis]:
    evidence = read_evidence(record_path(case).read_bytes())
    return evidence, diagnose(evidence)


if __name__ == "__main__":
    main()
