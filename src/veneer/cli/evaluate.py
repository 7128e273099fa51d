"""``veneer evaluate`` on a screen: what it does on standard error, what it found on standard output."""

from __future__ import annotations

import sys
from pathlib import Path

from veneer.cli.report import report_line
from veneer.serialise import to_json
from veneer.verbs.evaluate import Evaluating, Working, evaluate_adapter, folder_of

__all__ = ["evaluate_command"]


def evaluate_command(file: Path, how: Evaluating, *, as_json: bool) -> None:
    """Measure an adapter and print lines for a person, or the JSON that is written as well."""
    found = evaluate_adapter(file, how, _emit)
    print(to_json(found) if as_json else found, end="" if as_json else "\n", flush=True)
    _emit(Working(report_line(folder_of(file, how))))


def _emit(event: Working) -> None:
    print(event.what, file=sys.stderr, flush=True)
