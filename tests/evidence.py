"""Evidence made up for the tests of the doctor."""

from __future__ import annotations

from typing import Any

from veneer.config.load import build_config
from veneer.config.override import set_key
from veneer.config.schema import RunConfig
from veneer.doctor.curve import summarize
from veneer.doctor.evidence import (
    CaptionStatistics,
    CurveSegment,
    Effect,
    Ending,
    Evidence,
    Measurements,
    PictureCounts,
    ShuffledCaptions,
    WeightChange,
)
from veneer.doctor.finding import Finding, Rule

__all__ = [
    "GAIN",
    "HARM",
    "KNOWN",
    "NOTHING",
    "STEPS",
    "UNKNOWN",
    "config_of",
    "curve",
    "evidence_of",
    "find",
    "overrides",
]

STEPS = 200
GAIN = Effect(-0.2, -0.24, -0.16, 0.6, 0.4, 32)
NOTHING = Effect(-0.001, -0.004, 0.002, 0.6, 0.599, 32)
HARM = Effect(0.3, 0.25, 0.35, 0.6, 0.9, 32)
KNOWN = Effect(0.1, 0.08, 0.12, 0.6, 0.7, 32)
UNKNOWN = Effect(0.001, -0.01, 0.012, 0.6, 0.601, 32)


def config_of(**keys: Any) -> RunConfig:
    """Return a configuration with dotted keys set."""
    values: dict[str, Any] = {"base": "bundled", "data": {"sources": [{"path": "pictures"}]}}
    settings = {"train.max_steps": STEPS, "train.learning_rate": 2e-3, "data.resolution": 64, **keys}
    for name, value in settings.items():
        set_key(values, name, value, "test")
    return build_config(values, "test")


def curve(first: float, last: float, steps: int = STEPS) -> tuple[CurveSegment, ...]:
    """Return a loss that falls or rises in a straight line, with a little noise of known size."""
    rows = [(n + 1, first + (last - first) * n / steps + 0.01 * (-1) ** n, 1.0) for n in range(steps)]
    return summarize(rows)


def evidence_of(config: RunConfig | None = None, **parts: Any) -> Evidence:
    """Return the evidence of a healthy run, but for the parts given."""
    config = config or config_of()
    healthy: dict[str, Any] = {
        "ending": Ending("finished", config.train.max_steps),
        "loss_curve": curve(0.6, 0.4, config.train.max_steps),
        "skipped_steps": 0,
        "overflowed_steps": 0,
        "pictures": PictureCounts(100, 32, {}, 0, duplicates=0, near_duplicates=0, leaked=0, small=0, smallest=64),
        "captions": CaptionStatistics(100, 100, {"a": 1.0, "emoji": 1.0}, "a cat emoji"),
        "weight_changes": {"unet": WeightChange(80, 1.0, 5.0)},
        "held_out": GAIN,
        "training": Effect(-0.22, -0.25, -0.19, 0.6, 0.38, 32),
        "measurements": Measurements(
            train_captions=ShuffledCaptions(KNOWN, KNOWN), held_out_captions=ShuffledCaptions(KNOWN, KNOWN)
        ),
    }
    return Evidence(config=config, **{**healthy, **parts})


def find(rule: Rule, evidence: Evidence) -> Finding:
    """Return what a rule finds; it must find something."""
    finding = rule(evidence)
    assert finding is not None
    return finding


def overrides(finding: Finding) -> list[str]:
    """Return the changes that a finding proposes, as the command line takes them."""
    return [change.override for change in finding.changes]
