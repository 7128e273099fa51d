"""Print the result of ``veneer evaluate`` on standard output, and its progress on standard error."""

from __future__ import annotations

import sys
from pathlib import Path

from veneer.cli.terminal.report import report_line
from veneer.serialise import to_json
from veneer.verbs.evaluate import Evaluating, Working, evaluate_adapter, folder_of

__all__ = ["print_evaluation"]


def print_evaluation(file: Path, how: Evaluating, *, as_json: bool) -> None:
    """Measure an adapter and print lines for a person, or the JSON that is written as well."""
    evaluation = evaluate_adapter(file, how, _emit)
    print(to_json(evaluation) if as_json else evaluation, end="" if as_json else "\n", flush=True)
    _emit(Working(report_line(folder_of(file, how))))


def _emit(event: Working) -> None:
    print(event.what, file=sys.stderr, flush=True)
