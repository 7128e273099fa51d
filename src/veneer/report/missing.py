"""What a report does not show because the run was not asked for it, and the command that asks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from veneer.config.schema import RunConfig
from veneer.doctor.diagnosis import Diagnosis
from veneer.evaluate.results import Evaluation
from veneer.report.content import Missing, PictureGrid
from veneer.report.readers.folder import RunFolder
from veneer.run.folder import CONFIG, LOG

__all__ = ["doctor_command", "missing_diagnosis", "missing_parts", "missing_pictures"]


def missing_parts(run: RunFolder) -> Iterator[Missing]:
    """Yield what log, evaluation and plan do not tell."""
    config, training = run.config, run.training
    if config is not None and training is None:
        yield Missing("training", "The log is missing", f"keep {LOG} in the run's folder")
    if config is not None and (training is None or not training.scores):
        how = f"veneer train {_quote(run.path / CONFIG)} validation.every={_sixth(config)} output.dir=FOLDER"
        yield Missing("scores", "No scores were taken on the way", how)
    yield from _missing_measurements(run.evaluation, f"veneer evaluate {_quote(run.path)}")
    if config is not None and not run.plan:
        yield Missing("plan", "There is no plan", f"veneer plan {_quote(run.path / CONFIG)}")


def _missing_measurements(evaluation: Evaluation | None, command: str) -> Iterator[Missing]:
    if evaluation is None:
        yield Missing("help", "Nothing was measured at the end", command)
        yield Missing("copying", "Copies were not looked for", command)
        return
    if evaluation.held_out is None:
        yield Missing("help", "No picture was held out to measure on", f"{command} --data FOLDER")
    elif evaluation.drift is None:
        yield Missing("help", "Drift on other things was not measured", command)
    if evaluation.copying is None:
        yield Missing("copying", "No pictures were painted to look for copies", command)
    if evaluation.held_out is not None and not evaluation.scores:
        yield Missing("help", "No model of yours judged the pictures", f"{command} --clip MODEL --dino MODEL")


def missing_pictures(run: RunFolder, samples: PictureGrid | None, sheet: PictureGrid | None) -> Iterator[Missing]:
    """Yield which pictures a run has not; none for an evaluation alone."""
    if run.config is None:
        return
    source = _quote(run.path / CONFIG)
    if samples is None:
        how = f"veneer train {source} sample.every={_sixth(run.config)} output.dir=FOLDER"
        yield Missing("samples", "No samples were painted on the way", how)
    if sheet is None:
        what = "There is no sheet of before and after, which a run paints at its end"
        yield Missing("before_after", what, f"veneer train {source} --resume")


def missing_diagnosis(run: Path, diagnosis: Diagnosis) -> Iterator[Missing]:
    """Yield the questions that the doctor could not answer."""
    if diagnosis.unjudged:
        questions = " ".join(question.what for question in diagnosis.unjudged)
        yield Missing("doctor", f"Not judged: {questions}", f"{doctor_command(run)} --measure")


def doctor_command(run: Path) -> str:
    """Return the command that diagnoses a run."""
    return f"veneer doctor {_quote(run)}"


def _sixth(config: RunConfig) -> int:
    """Return a sixth of a run's steps."""
    return max(1, config.train.max_steps // 6)


def _quote(path: Path) -> str:
    return shlex.quote(str(path))
