"""``veneer report``, and the report that other verbs leave behind."""

from __future__ import annotations

from pathlib import Path

from veneer.errors import UserError
from veneer.report.gather import report_json, report_run, write_report

__all__ = ["report_command", "report_line"]


def report_command(folder: Path, *, as_json: bool) -> None:
    """Write the report and say where it is; or print it as data and write nothing."""
    print(report_json(report_run(folder)) if as_json else write_report(folder), end="" if as_json else "\n")


def report_line(folder: Path) -> str:
    """Write the report of work that is done, which is not undone by a report that cannot be had."""
    try:
        return f"report: {write_report(folder)}"
    except UserError as fault:
        return f"no report: {fault}"
