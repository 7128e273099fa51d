"""Print the result of ``veneer evaluate`` on standard output, and its progress on standard error."""

from __future__ import annotations

import sys
from pathlib import Path

from veneer.cli.terminal.report import report_line
from veneer.serialise import to_json
from veneer.verbs.evaluate import StageStarted, evaluate_adapter, evaluation_folder
from veneer.verbs.evaluation_inputs import EvaluationOptions

__all__ = ["print_evaluation"]


def print_evaluation(file: Path, options: EvaluationOptions, *, as_json: bool) -> None:
    """Measure an adapter and print lines for the user, or the JSON that is written as well."""
    evaluation = evaluate_adapter(file, options, _print_stage)
    print(to_json(evaluation) if as_json else evaluation, end="" if as_json else "\n", flush=True)
    print(report_line(evaluation_folder(file, options)), file=sys.stderr, flush=True)


def _print_stage(event: StageStarted) -> None:
    print(event.description, file=sys.stderr, flush=True)
