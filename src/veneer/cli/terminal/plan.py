"""Print the result of ``veneer plan``, as tables or as JSON."""

from __future__ import annotations

import json
from typing import Any

from veneer.cli.terminal.console import print_text
from veneer.config.schema import RunConfig
from veneer.plan.assessment import Assessment, assess_config
from veneer.plan.probe import Probe, probe
from veneer.plan.text import parse_bytes

__all__ = ["assessment_text", "print_plan"]


def print_plan(config: RunConfig, *, count_pictures: bool, probed: bool, memory: str | None, as_json: bool) -> None:
    """Print the plan of a run.

    Args:
        config: the run.
        count_pictures: whether its pictures are there to be counted.
        probed: measure as well.
        memory: free memory of another machine; None: this one's.
        as_json: print data.
    """
    limit = None if memory is None else parse_bytes(memory, "--memory")
    assessment = assess_config(config, count_pictures=count_pictures, limit=limit)
    if not as_json:
        print_text(assessment_text(assessment))
    measured = probe(config) if probed else None
    if as_json:
        print_text(json.dumps(_as_dict(assessment, measured), indent=2))
    elif measured is not None:
        print_text(probe_text(assessment, measured))


def assessment_text(assessment: Assessment) -> str:
    """Return the plan, the verdict and the remedies as text."""
    lines = [str(assessment.plan), assessment.verdict]
    if assessment.plan.distilled is not None:
        lines.append(f"warning: {assessment.plan.distilled}")
    if assessment.remedies:
        lines.append("what would make it fit:")
        lines += [f"  {remedy}" for remedy in assessment.remedies]
    elif not assessment.fits:
        lines.append("no change of batch, memory, precision or rank would make it fit; lower data.resolution")
    return "\n".join(lines)


def probe_text(assessment: Assessment, measured: Probe) -> str:
    """Return a table of measured and planned memory, and the time of the run, as text."""
    memory, schedule = assessment.plan.memory, assessment.plan.schedule
    assert memory is not None and schedule is not None, "an assessment has both"
    return f"{measured.beside(memory)}\n{_time_text(measured.seconds, schedule.steps)}"


def _time_text(seconds: float, steps: int) -> str:
    minutes, rest = divmod(round(seconds * steps), 60)
    hours, minutes = divmod(minutes, 60)
    return f"time: {seconds:.2f} s a step, {hours}:{minutes:02d}:{rest:02d} for {steps:,} steps"


def _as_dict(assessment: Assessment, measured: Probe | None) -> dict[str, Any]:
    values = assessment.plan.as_dict()
    values["free_bytes"], values["fits"] = assessment.free, assessment.fits
    values["remedies"] = [{"changes": dict(remedy.changes), "peak": remedy.peak} for remedy in assessment.remedies]
    if measured is not None:
        steps = 0 if assessment.plan.schedule is None else assessment.plan.schedule.steps
        values["probe"] = {
            "peaks": dict(measured.peaks),
            "peak": measured.peak,
            "before": measured.before,
            "seconds_a_step": measured.seconds,
            "seconds": measured.seconds * steps,
        }
    return values
