"""Print the result of ``veneer doctor``: one finding a paragraph, or JSON."""

from __future__ import annotations

import json
import shlex
import textwrap
from pathlib import Path

from pydantic import TypeAdapter

from veneer.cli.terminal.console import print_text
from veneer.doctor.diagnosis import Diagnosis
from veneer.doctor.evidence import Evidence
from veneer.doctor.finding import Change, Finding, interval
from veneer.doctor.gather import run_doctor
from veneer.printable import in_one_line

__all__ = ["diagnosis_json", "diagnosis_text", "print_diagnosis"]

_WIDTH = 100
_DIAGNOSIS = TypeAdapter(Diagnosis)


def print_diagnosis(folder: Path, *, measured: bool, as_json: bool) -> bool:
    """Print the problems of a run.

    Returns:
        Whether it has any.
    """
    diagnosis, evidence = run_doctor(folder, measured=measured)
    print_text(diagnosis_json(diagnosis) if as_json else diagnosis_text(diagnosis, evidence))
    return diagnosis.has_problems


def diagnosis_json(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as JSON."""
    return json.dumps(_DIAGNOSIS.dump_python(diagnosis, mode="json"), indent=2, ensure_ascii=False)


def diagnosis_text(diagnosis: Diagnosis, evidence: Evidence) -> str:
    """Return the findings as paragraphs, then the questions that could not be answered."""
    parts = [_finding_text(finding) for finding in diagnosis.findings]
    if not diagnosis.has_problems:
        parts.insert(0, _healthy_text(evidence))
    if diagnosis.unjudged:
        questions = [in_one_line(f"  {question.what} {question.how}") for question in diagnosis.unjudged]
        parts.append("\n".join(["Not judged, and how it could be:", *questions]))
    return "\n\n".join(parts)


def _healthy_text(evidence: Evidence) -> str:
    score = f"; the held-out loss changes by {interval(evidence.held_out)}" if evidence.held_out else ""
    steps = f"{evidence.ending.step} steps" if evidence.ending.step else "its steps are not known"
    return f"No problem was found in this run: {steps}{score}."


def _finding_text(finding: Finding) -> str:
    head = f"{finding.name}: {finding.what}" + ("" if finding.sure else " (not sure)")
    if not finding.is_problem:
        head = f"note, {head}"
    rows = [_wrapped(head, "")]
    rows += [_wrapped(seen, "  saw  ") for seen in finding.evidence]
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
