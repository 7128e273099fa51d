"""Print the result of ``veneer evaluate`` on standard output, and its progress on standard error."""

from __future__ import annotations

from pathlib import Path

from veneer.cli.terminal.console import print_error, print_text
from veneer.cli.terminal.report import report_line
from veneer.serialise import to_json
from veneer.verbs.evaluate import StageStarted, evaluate_adapter, evaluation_folder
from veneer.verbs.evaluation_inputs import EvaluationOptions

__all__ = ["print_evaluation"]


def print_evaluation(file: Path, options: EvaluationOptions, *, as_json: bool) -> None:
    """Measure an adapter and print lines for the user, or the JSON that is written as well."""
    evaluation = evaluate_adapter(file, options, _print_stage)
    print_text(to_json(evaluation) if as_json else f"{evaluation}\n", end="")
    print_error(report_line(evaluation_folder(file, options)))


def _print_stage(event: StageStarted) -> None:
    print_error(event.description)
