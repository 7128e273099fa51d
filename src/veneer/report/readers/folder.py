"""The folder of a run, or of an evaluation alone: the parts that a report is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veneer.config.load import load_config
from veneer.config.schema import RunConfig
from veneer.errors import UserError
from veneer.evaluate.results import EVALUATION, Evaluation, read_evaluation
from veneer.report.content import TrainingSummary
from veneer.report.readers.log import summarize_log
from veneer.run.folder import CONFIG, LOG, PLAN
from veneer.run.status import is_running
from veneer.weights.file import AdapterInfo, file_in, info

__all__ = ["RunFolder", "read_folder"]


@dataclass(frozen=True)
class RunFolder:
    """Parts of a run's folder.

    Attributes:
        path: the folder.
        config: configuration of the run; None for an evaluation alone.
        training: the log, summed up; None where there is none.
        evaluation: measurements at the end; None where there are none.
        adapter: facts about the adapter's file; None before it is saved.
        plan: content of ``plan.json``; empty where there is none.
    """

    path: Path
    config: RunConfig | None
    training: TrainingSummary | None
    evaluation: Evaluation | None
    adapter: AdapterInfo | None
    plan: Mapping[str, Any]


def read_folder(path: Path) -> RunFolder:
    """Read a folder.

    Raises:
        UserError: it is of neither a run nor an evaluation.
    """
    has_config = (path / CONFIG).is_file()
    if not has_config and not (path / EVALUATION).is_file():
        raise UserError(
            f"is no run's folder: it holds neither {CONFIG} nor {EVALUATION}",
            code="report.not_a_run",
            where=path,
            remedy="give the folder that 'veneer train' or 'veneer evaluate' wrote to",
        )
    config = load_config(path / CONFIG) if has_config else None
    training = None if config is None else _read_training(path, config)
    return RunFolder(path, config, training, read_evaluation(path), _read_adapter(path), _read_plan(path / PLAN))


def _read_training(path: Path, config: RunConfig) -> TrainingSummary | None:
    return summarize_log(path / LOG, config.train.max_steps, running=is_running(path))


def _read_adapter(path: Path) -> AdapterInfo | None:
    try:
        return info(file_in(path))
    except UserError:  # it is not saved yet, or damaged, which 'veneer adapter info' tells
        return None


def _read_plan(path: Path) -> Mapping[str, Any]:
    try:
        plan = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return plan if isinstance(plan, dict) else {}
