"""``veneer plan`` on a screen: tables, whether it fits, what would make it fit, and measured figures; or JSON."""

from __future__ import annotations

import json
from typing import Any

from veneer.config.schema import RunConfig
from veneer.plan.memory import bytes_of
from veneer.plan.probe import Probe, probe
from veneer.plan.rehearsal import Outlook, look_ahead

__all__ = ["outlook_text", "plan_command"]


def plan_command(config: RunConfig, *, known: bool, probed: bool, memory: str | None, as_json: bool) -> None:
    """Print the plan of a run.

    Args:
        config: the run.
        known: whether its pictures are there to be counted.
        probed: measure as well.
        memory: free memory of another machine; None: this one's.
        as_json: print data.
    """
    limit = None if memory is None else bytes_of(memory, "--memory")
    outlook = look_ahead(config, known=known, limit=limit)
    if not as_json:
        print(outlook_text(outlook), flush=True)
    found = probe(config) if probed else None
    if as_json:
        print(json.dumps(_as_dict(outlook, found), indent=2))
    elif found is not None:
        print(probe_text(outlook, found))


def outlook_text(outlook: Outlook) -> str:
    """The plan, the verdict, the remedies."""
    lines = [str(outlook.plan)]
    if outlook.verdict is not None:
        lines.append(outlook.verdict)
    if outlook.remedies:
        lines.append("what would make it fit:")
        lines += [f"  {remedy}" for remedy in outlook.remedies]
    elif outlook.fits is False:
        lines.append("no change of batch, memory, precision or rank would make it fit; lower data.resolution")
    return "\n".join(lines)


def probe_text(outlook: Outlook, found: Probe) -> str:
    """Measured beside planned, and how long the run will take."""
    memory, course = outlook.plan.memory, outlook.plan.course
    assert memory is not None and course is not None, "look_ahead plans both"
    return f"{found.beside(memory)}\n{_time_text(found.seconds, course.steps)}"


def _time_text(seconds: float, steps: int) -> str:
    minutes, rest = divmod(round(seconds * steps), 60)
    hours, minutes = divmod(minutes, 60)
    return f"time: {seconds:.2f} s a step, {hours}:{minutes:02d}:{rest:02d} for {steps:,} steps"


def _as_dict(outlook: Outlook, found: Probe | None) -> dict[str, Any]:
    told = outlook.plan.as_dict()
    told["free_bytes"], told["fits"] = outlook.free, outlook.fits
    told["remedies"] = [{"changes": dict(remedy.changes), "peak": remedy.peak} for remedy in outlook.remedies]
    if found is not None:
        steps = 0 if outlook.plan.course is None else outlook.plan.course.steps
        told["probe"] = {
            "peaks": dict(found.peaks),
            "peak": found.peak,
            "before": found.before,
            "seconds_a_step": found.seconds,
            "seconds": found.seconds * steps,
        }
    return told
