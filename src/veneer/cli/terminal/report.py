"""Write the report of a run, or print it; other verbs write one as their last act."""

from __future__ import annotations

from pathlib import Path

from veneer.cli.terminal.console import print_text
from veneer.errors import UserError
from veneer.report.build import build_report, report_json, write_report

__all__ = ["print_report", "report_line"]


def print_report(folder: Path, *, as_json: bool) -> None:
    """Write the report and print where it is; or print it as data and write nothing."""
    print_text(report_json(build_report(folder)) if as_json else f"{write_report(folder)}\n", end="")


def report_line(folder: Path) -> str:
    """Write the report of work that is done; one that cannot be written is no failure of that work.

    Returns:
        A line that says where the report is, or why there is none.
    """
    try:
        return f"report: {write_report(folder)}"
    except UserError as fault:
        return f"no report: {fault}"
