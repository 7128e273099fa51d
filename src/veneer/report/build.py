"""Report of a run's folder, built from its parts and written as ``report.html`` and ``report.json``."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from veneer.config.load import dump_config
from veneer.doctor.finding import Finding
from veneer.doctor.gather import run_doctor
from veneer.errors import UserError
from veneer.files import atomic_write, opens_paths
from veneer.report.content import Missing, Report
from veneer.report.missing import doctor_command, missing_diagnosis, missing_parts, missing_pictures
from veneer.report.page import render_page
from veneer.report.readers.facts import read_facts
from veneer.report.readers.folder import RunFolder, read_folder
from veneer.report.readers.pictures import before_after, nearest_pairs, samples_by_step
from veneer.report.readers.plan import compare_plan
from veneer.report.sentences import run_verdict
from veneer.run.folder import LOG, REPORT, REPORT_DATA
from veneer.serialise import to_json

__all__ = ["build_report", "report_json", "write_report"]

_MAX_DOCTOR_LOG = 64 * 2**20
"""Bytes of a log that the doctor reads unasked, for all of it is kept in memory."""
_REPORT = TypeAdapter(Report)


@opens_paths
def write_report(folder: Path) -> Path:
    """Write ``report.html`` and ``report.json`` into a run's folder; an equal folder gives equal bytes.

    Args:
        folder: folder of a run, whether it has ended or not, or of an evaluation.

    Returns:
        The path of the page.

    Raises:
        UserError: the folder is neither, or cannot be written to.
    """
    report = build_report(folder)
    atomic_write(folder / REPORT_DATA, report_json(report).encode())
    atomic_write(folder / REPORT, render_page(report).encode(errors="xmlcharrefreplace"))
    return folder / REPORT


def report_json(report: Report) -> str:
    """Return the text of ``report.json``: all but the pictures, of which it has the files and hashes."""
    return to_json(_REPORT.dump_python(report))


@opens_paths
def build_report(folder: Path) -> Report:
    """Return the report of a folder; errors are those of :func:`write_report`."""
    run = read_folder(folder)
    findings, unjudged = _diagnose(run)
    samples, sheet = samples_by_step(folder), before_after(folder)
    tone, verdict = run_verdict(run.evaluation, run.training)
    copying = run.evaluation.copying if run.evaluation else None
    return Report(
        title=folder.resolve().name,
        tone=tone,
        verdict=verdict,
        training=run.training,
        evaluation=run.evaluation,
        samples=samples,
        before_after=sheet,
        nearest_pairs=nearest_pairs(copying, folder) if copying else (),
        plan=tuple(compare_plan(run)),
        findings=findings,
        facts=tuple(read_facts(run)),
        config=dump_config(run.config) if run.config else None,
        missing=(*missing_parts(run), *unjudged, *missing_pictures(run, samples, sheet)),
    )


def _diagnose(run: RunFolder) -> tuple[tuple[Finding, ...] | None, tuple[Missing, ...]]:
    """Return the doctor's findings, and what the doctor could not judge."""
    log, command = run.path / LOG, doctor_command(run.path)
    if run.config is None:
        return None, ()
    if log.is_file() and log.stat().st_size > _MAX_DOCTOR_LOG:
        return None, (Missing("doctor", "The log is long, so the doctor was not asked", command),)
    try:
        diagnosis, _ = run_doctor(run.path)
    except UserError as error:
        return None, (Missing("doctor", f"The doctor could not look at it ({error})", command),)
    return diagnosis.findings, tuple(missing_diagnosis(run.path, diagnosis))
