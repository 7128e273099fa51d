"""``veneer doctor`` on a screen: one finding a paragraph, or JSON."""

from __future__ import annotations

import json
import shlex
import textwrap
from dataclasses import asdict
from pathlib import Path

from veneer.doctor.diagnosis import Diagnosis
from veneer.doctor.evidence import Evidence
from veneer.doctor.finding import Change, Finding, interval
from veneer.doctor.gather import doctor_run

__all__ = ["diagnosis_json", "diagnosis_text", "doctor_command"]

_WIDTH = 100


def doctor_command(folder: Path, *, measured: bool, as_json: bool) -> bool:
    """Print what ails a run.

    Returns:
        Whether it is ill.
    """
    diagnosis, evidence = doctor_run(folder, measured=measured)
    print(diagnosis_json(diagnosis) if as_json else diagnosis_text(diagnosis, evidence, folder))
    return diagnosis.is_ill


def diagnosis_json(diagnosis: Diagnosis) -> str:
    """The same as data; each change also as the command line takes it."""
    findings = [
        {**asdict(finding), "changes": [{**asdict(one), "override": one.override} for one in finding.changes]}
        for finding in diagnosis.findings
    ]
    unjudged = [asdict(one) for one in diagnosis.unjudged]
    return json.dumps(
        {"ill": diagnosis.is_ill, "findings": findings, "unjudged": unjudged}, indent=2, ensure_ascii=False
    )


def diagnosis_text(diagnosis: Diagnosis, evidence: Evidence, folder: Path) -> str:
    """What is wrong, the evidence, what to try; then what could not be judged."""
    parts = [_finding_text(finding) for finding in diagnosis.findings]
    if not diagnosis.is_ill:
        parts.insert(0, _healthy_text(evidence))
    if diagnosis.unjudged:
        asked = [f"  {one.what} {one.how.replace('RUN', shlex.quote(str(folder)))}" for one in diagnosis.unjudged]
        parts.append("\n".join(["Not judged, and how it could be:", *asked]))
    return "\n\n".join(parts)


def _healthy_text(evidence: Evidence) -> str:
    score = f"; the held-out loss changes by {interval(evidence.held_out)}" if evidence.held_out else ""
    steps = f"{evidence.ending.step} steps" if evidence.ending.step else "its steps are not known"
    return f"Nothing ails this run, as far as can be seen: {steps}{score}."


def _finding_text(finding: Finding) -> str:
    head = f"{finding.name}: {finding.what}" + ("" if finding.sure else " (not sure)")
    if finding.level == "note":
        head = f"note, {head}"
    rows = [_wrapped(head, "")]
    rows += [_wrapped(said, "  saw  ") for said in finding.evidence]
    rows += [_wrapped(_change_text(change), "  try  ") for change in finding.changes]
    rows += [_wrapped(advice, "  try  ") for advice in finding.advice]
    return "\n".join(rows)


def _change_text(change: Change) -> str:
    return f"{shlex.quote(change.override)}  ({change.why})"


def _wrapped(text: str, start: str) -> str:
    indent = " " * len(start)
    return textwrap.fill(
        text, _WIDTH, initial_indent=start, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
