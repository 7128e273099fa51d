"""``python -m tools.illnesses --work FOLDER`` makes the runs and records what the doctor sees of them.

A run that is recorded already is not made again, so an interrupted command goes on where it was; ``--again`` makes it
anew. ``--only NAME`` makes one. What is recorded is in ``tests/golden/doctor``; tests judge the doctor by it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from tools.illnesses.cases import CASES, Case
from tools.illnesses.folders import split_held_out
from tools.illnesses.making import ROOT, record, record_of
from tools.publish import publish
from veneer.doctor.diagnosis import diagnose
from veneer.doctor.evidence import read_evidence
from veneer.doctor.finding import interval

PAGE = ROOT / "docs" / "doctor.md"


def main() -> None:
    """Make the runs that are not recorded, and say what the doctor says of all."""
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
            if options.again or not record_of(case).exists():
                record(case)
            print(f"{case.name:24} {_said(case)}  {time.monotonic() - began:.0f} s", flush=True)
    publish(PAGE, table())


def table() -> str:
    """What the records say of the doctor, as its page has it."""
    made = [case for case in CASES if record_of(case).exists()]
    fitted = [case for case in made if case.is_fitted]
    judged = [case for case in made if not case.is_fitted]
    ill, healthy = ([case for case in judged if bool(case.ailment) is kind] for kind in (True, False))
    named, passed, known = (sum(map(is_right, cases)) for cases in (ill, healthy, fitted))
    return f"""\
Of {len(ill)} runs that were made ill, **{named}** have their illness named first. Of {len(healthy)} healthy ones,
**{len(healthy) - passed}** are called ill. No limit was chosen on any of these.

{_rows(ill)}

{_rows(healthy)}

The runs that the limits were chosen on, of which {known} of {len(fitted)} are diagnosed right:

{_rows(fitted)}
"""


def _rows(cases: Sequence[Case]) -> str:
    rows = [f"| `{case.name}` | {_made(case)} | {_verdict(case)} | {_seen(case)} |" for case in cases]
    return "\n".join(["| run | made to have | found | seen by |", "| --- | --- | --- | --- |", *rows])


def _made(case: Case) -> str:
    return " or ".join(case.ailment) or "nothing"


def _verdict(case: Case) -> str:
    found = ", ".join(_found(case)) or "nothing"
    return found if is_right(case) else f"**wrong:** {found}"


def _seen(case: Case) -> str:
    """By what the first finding was seen; of a healthy run, what there is to see."""
    evidence = read_evidence(record_of(case).read_bytes())
    ill = [one for one in diagnose(evidence).findings if one.level == "ill"]
    score = evidence.held_out
    healthy = "no picture was held out" if score is None else f"the held-out loss changes by {interval(score)}"
    return (ill[0].evidence[0] if ill else healthy).replace("|", "\\|")


def _said(case: Case) -> str:
    """Whether the doctor is right, and what it says."""
    return f"{'right' if is_right(case) else 'WRONG'}: {', '.join(_found(case)) or 'healthy'}"


def is_right(case: Case) -> bool:
    """Whether the first illness that is found is the run's own, or none is found in a healthy one."""
    found = _found(case)
    return found[0] in case.ailment if case.ailment and found else not case.ailment and not found


def _found(case: Case) -> list[str]:
    evidence = read_evidence(record_of(case).read_bytes())
    return [one.name for one in diagnose(evidence).findings if one.level == "ill"]


if __name__ == "__main__":
    main()
