"""A run's folder told as one page, ``report.html``, and as data, ``report.json``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veneer.config.load import dump_config, load_config
from veneer.config.schema import RunConfig
from veneer.doctor.finding import Finding
from veneer.doctor.gather import run_doctor
from veneer.errors import UserError
from veneer.evaluate.results import EVALUATION, Evaluation, read_evaluation
from veneer.files import atomic_write
from veneer.report.content import Advised, Course, Missing, Named, Planned, Report, Strip
from veneer.report.history import read_log
from veneer.report.page import page
from veneer.report.pictures import before_after, samples_by_step, twins_of
from veneer.report.words import verdict_of_run
from veneer.run.folder import CHECKPOINTS, CONFIG, LOG, PLAN, REPORT, REPORT_DATA
from veneer.run.status import is_running
from veneer.serialise import to_data
from veneer.weights.checkpoint import checkpoints_in
from veneer.weights.file import AdapterInfo, file_in, info

__all__ = ["report_json", "report_run", "write_report"]

_DOCTORS = 64 * 2**20
"""Bytes of a log that the doctor reads unasked: he keeps all of it in memory."""


def write_report(folder: Path) -> Path:
    """Tell a run's folder as ``report.html`` and ``report.json`` in it; an equal folder gives equal bytes.

    Args:
        folder: of a run, whether it has ended or not, or of an evaluation.

    Returns:
        The page.

    Raises:
        UserError: it is neither, or cannot be written to.
    """
    report = report_run(folder)
    atomic_write(folder / REPORT_DATA, report_json(report).encode())
    atomic_write(folder / REPORT, page(report).encode(errors="xmlcharrefreplace"))
    return folder / REPORT


def report_json(report: Report) -> str:
    """The text of ``report.json``: all but the pictures, of which it has the files and hashes."""
    plain = _without_data(to_data(report))
    return json.dumps(plain, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def _without_data(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_data(each) for name, each in value.items() if name != "data"}
    return [_without_data(each) for each in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class _Found:
    """What a folder holds.

    Attributes:
        folder: the one.
        config: of the run; None for an evaluation alone.
        course: told by the log; None where there is none.
        evaluation: of the adapter; None where there is none.
        adapter: its file; None before it is saved.
        plan: as ``plan.json`` has it.
    """

    folder: Path
    config: RunConfig | None
    course: Course | None
    evaluation: Evaluation | None
    adapter: AdapterInfo | None
    plan: Mapping[str, Any]


def report_run(folder: Path) -> Report:
    """What there is to tell of a folder, as :func:`write_report` does."""
    found = _look_into(folder)
    course, evaluation = found.course, found.evaluation
    missing = [*_missing(found)]
    findings = _findings(found, missing)
    samples, sheet = samples_by_step(folder), before_after(folder)
    tone, verdict = verdict_of_run(evaluation, course)
    return Report(
        title=folder.resolve().name,
        tone=tone,
        verdict=verdict,
        course=course,
        evaluation=evaluation,
        samples=samples,
        sheet=sheet,
        twins=twins_of(evaluation.copying, folder) if evaluation and evaluation.copying else (),
        plan=tuple(_plan(found)),
        findings=findings,
        facts=tuple(_facts(found)),
        config=dump_config(found.config) if found.config else None,
        missing=(*missing, *_missing_pictures(found, samples, sheet)),
    )


def _look_into(folder: Path) -> _Found:
    config_file = folder / CONFIG
    if not config_file.is_file() and not (folder / EVALUATION).is_file():
        remedy = "give the folder that 'veneer train' or 'veneer evaluate' wrote to"
        raise UserError(f"is no run's folder: it holds neither {CONFIG} nor {EVALUATION}", where=folder, remedy=remedy)
    config = load_config(config_file) if config_file.is_file() else None
    steps = config.train.max_steps if config else 0
    return _Found(
        folder,
        config,
        read_log(folder / LOG, steps, running=is_running(folder)) if config else None,
        read_evaluation(folder),
        _adapter(folder),
        _read_plan(folder / PLAN),
    )


def _adapter(folder: Path) -> AdapterInfo | None:
    try:
        return info(file_in(folder))
    except UserError:  # it is not saved yet, or broken, which 'veneer adapter info' tells
        return None


def _read_plan(path: Path) -> Mapping[str, Any]:
    try:
        plan = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return plan if isinstance(plan, dict) else {}


def _missing(found: _Found) -> Iterator[Missing]:
    """What the run was not asked for, and how to ask."""
    evaluation, course, config = found.evaluation, found.course, found.config
    run, source = _shell(found.folder), _shell(found.folder / CONFIG)
    if config is not None and course is None:
        yield Missing("course", "The log is missing", f"keep {LOG} in the run's folder")
    if config is not None and (course is None or not course.scores):
        how = f"veneer train {source} validation.every={_often(config)} output.dir=FOLDER"
        yield Missing("scores", "No scores were taken on the way", how)
    if evaluation is None:
        yield Missing("help", "Nothing was measured at the end", f"veneer evaluate {run}")
    elif evaluation.held_out is None:
        yield Missing("help", "No picture was held out to measure on", f"veneer evaluate {run} --data FOLDER")
    elif evaluation.drift is None:
        yield Missing("help", "Drift on other things was not measured", f"veneer evaluate {run}")
    if evaluation is not None and evaluation.copying is None:
        yield Missing("copying", "No pictures were painted to look for copies", f"veneer evaluate {run}")
    if evaluation is None:
        yield Missing("copying", "Copies were not looked for", f"veneer evaluate {run}")
    if evaluation is not None and evaluation.held_out is not None and not evaluation.scores:
        how = f"veneer evaluate {run} --clip MODEL --dino MODEL"
        yield Missing("help", "No model of yours judged the pictures", how)
    if config is not None and not found.plan:
        yield Missing("plan", "There is no plan", f"veneer plan {source}")


def _often(config: RunConfig) -> int:
    """Six times in a run."""
    return max(1, config.train.max_steps // 6)


def _missing_pictures(found: _Found, samples: Strip | None, sheet: Strip | None) -> Iterator[Missing]:
    if found.config is not None and samples is None:
        how = f"veneer train {_shell(found.folder / CONFIG)} sample.every={_often(found.config)} output.dir=FOLDER"
        yield Missing("samples", "No samples were painted on the way", how)
    if found.config is not None and sheet is None:
        how = f"veneer train {_shell(found.folder / CONFIG)} --resume"
        yield Missing("sheet", "There is no sheet of before and after, which a run paints at its end", how)


def _shell(path: Path) -> str:
    """As a command line takes it."""
    return shlex.quote(str(path))


def _findings(found: _Found, missing: list[Missing]) -> tuple[Advised, ...] | None:
    """The doctor's, where he has a run to look at; what he could not judge is missed."""
    log, ask = found.folder / LOG, f"veneer doctor {_shell(found.folder)}"
    if found.config is None:
        return None
    if log.is_file() and log.stat().st_size > _DOCTORS:
        missing.append(Missing("doctor", "The log is long, so the doctor was not asked", ask))
        return None
    try:
        diagnosis, _ = run_doctor(found.folder)
    except UserError as fault:
        missing.append(Missing("doctor", f"The doctor could not look at it ({fault})", ask))
        return None
    if diagnosis.unjudged:
        questions = " ".join(each.what for each in diagnosis.unjudged)
        missing.append(Missing("doctor", f"Not judged: {questions}", f"{ask} --measure"))
    return tuple(_advised(each) for each in diagnosis.findings)


def _advised(finding: Finding) -> Advised:
    changes = tuple(Named(change.override, change.why) for change in finding.changes)
    told = finding.name, finding.what, finding.level, finding.sure, finding.evidence
    return Advised(*told, changes, finding.advice)


def _plan(found: _Found) -> Iterator[Planned]:
    """Each figure of the plan beside what came of it."""
    plan, course, adapter = found.plan, found.course, found.adapter
    if not plan:
        return
    if adapter is not None:
        yield Planned("parameters of the adapter", plan.get("trainable"), adapter.parameters, "parameters")
        yield Planned("adapter file", plan.get("file_bytes"), adapter.size_bytes, "bytes")
    if course is not None:
        yield Planned("steps", course.ending.steps, course.ending.step, "steps")
    if memory := plan.get("memory"):
        measured = None if course is None else course.memory_bytes
        yield Planned(f"memory on {memory['device']}, at most", memory.get("peak"), measured, "bytes")
    checkpoints = checkpoints_in(found.folder / CHECKPOINTS)
    if plan.get("disk"):
        size = sum(path.stat().st_size for path in checkpoints[-1].iterdir()) if checkpoints else None
        yield Planned("a checkpoint", plan["disk"].get("checkpoint"), size, "bytes")
    if course and course.step_seconds is not None:
        yield Planned("time of a step (median)", None, course.step_seconds, "seconds")


def _facts(found: _Found) -> Iterator[Named]:
    """Where everything is from."""
    if found.evaluation is not None:
        yield Named("evaluated adapter", found.evaluation.adapter)
        yield Named("base", found.evaluation.base)
    elif found.config is not None:
        yield Named("base", found.config.base)
    if (adapter := found.adapter) is None:
        return
    yield Named("adapter file, SHA-256", adapter.sha256)
    yield Named("format", adapter.format)
    for name, value in sorted(adapter.metadata.items()):
        if name.startswith("veneer."):
            yield Named(name, value)
