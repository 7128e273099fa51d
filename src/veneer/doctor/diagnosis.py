"""The table of rules, and what it says of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from veneer.doctor.evidence import Evidence
from veneer.doctor.finding import Finding, Rule
from veneer.doctor.rules import endings, learning, pictures, settings

__all__ = ["EXPLAINS", "RULES", "Diagnosis", "Unjudged", "diagnose"]

RULES: tuple[Rule, ...] = (
    endings.out_of_memory,
    endings.not_a_number,
    endings.failed,
    endings.cut_off,
    endings.stopped,
    pictures.few_pictures,
    pictures.captions_wrong,
    learning.dead_adapter,
    settings.decay_too_strong,
    settings.dropout_too_high,
    settings.warmup_too_long,
    learning.text_encoder_overcooked,
    learning.diverged,
    learning.rate_too_high,
    learning.rate_too_low,
    learning.underfit,
    pictures.duplicated,
    learning.overfit,
    learning.drifted,
    pictures.captions_alike,
    pictures.captions_leak_style,
    pictures.trigger_missing,
    pictures.trigger_unused,
    pictures.held_out_leaked,
    pictures.blurred,
    pictures.left_out,
    pictures.no_held_out,
    pictures.few_held_out,
    settings.strength_far_from_one,
)
"""Causes before what they cause: a finding leaves out later ones that it explains."""

_LEARNING = ("diverged", "rate_too_high", "rate_too_low", "underfit", "overfit", "drift", "text_encoder_overcooked")
_LITTLE = ("rate_too_low", "underfit")
EXPLAINS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "out_of_memory": (*_LEARNING, "dead_adapter", "cut_off"),
        "nan": (*_LEARNING, "dead_adapter", "decay_too_strong"),
        "failed": _LEARNING,
        "few_pictures": ("overfit",),
        "captions_wrong": (*_LITTLE, "overfit", "rate_too_high"),
        "dead_adapter": (*_LITTLE, "strength_far_from_one", "failed"),
        "decay_too_strong": _LITTLE,
        "dropout_too_high": _LITTLE,
        "warmup_too_long": _LITTLE,
        "text_encoder_overcooked": ("captions_wrong", "diverged", "rate_too_high", "underfit", "overfit", "drift"),
        "diverged": ("rate_too_high", *_LITTLE, "overfit", "drift"),
        "rate_too_high": ("underfit", "overfit", "drift"),
        "rate_too_low": ("underfit",),
        "trigger_missing": ("drift",),
    }
)
"""What an illness brings with it, so that it needs no finding of its own."""


@dataclass(frozen=True)
class Unjudged:
    """Something that the evidence does not tell.

    Attributes:
        what: a question.
        how: to get the evidence.
    """

    what: str
    how: str


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor says of a run.

    Attributes:
        findings: illnesses and notes, causes first.
        unjudged: what could not be judged.
    """

    findings: tuple[Finding, ...]
    unjudged: tuple[Unjudged, ...]

    @property
    def is_ill(self) -> bool:
        """Whether any finding is an illness."""
        return any(finding.level == "ill" for finding in self.findings)


def diagnose(evidence: Evidence) -> Diagnosis:
    """Try every rule; leave out what another finding explains."""
    found = [finding for rule in RULES if (finding := rule(evidence)) is not None]
    explained = {name for finding in found if finding.level == "ill" for name in EXPLAINS.get(finding.name, ())}
    ill_first = sorted((one for one in found if one.name not in explained), key=lambda one: one.level != "ill")
    return Diagnosis(tuple(ill_first), tuple(_unjudged(evidence)))


def _unjudged(evidence: Evidence) -> list[Unjudged]:
    if evidence.ending.how == "failed":
        return []
    measured, missing = evidence.measured, []
    if evidence.ending.how == "unknown":
        missing.append(Unjudged("How did it end, and how did its loss fall?", "its log, run.jsonl, must be here"))
    measure = "veneer doctor RUN --measure"
    if evidence.unmeasured:
        missing.append(
            Unjudged("Do the captions fit their pictures?", f"nothing could be measured: {evidence.unmeasured}")
        )
    elif measured is None:
        missing.append(Unjudged("Do the captions fit their pictures? Is every part of the adapter of use?", measure))
    elif measured.train_captions is None:
        missing.append(Unjudged("Do the captions fit their pictures?", "all are the same words, so nothing tells"))
    if evidence.held_out is None:
        missing.append(Unjudged("Did it learn or memorise?", "hold pictures out: data.held_out=0.1"))
    if evidence.drift is None:
        missing.append(Unjudged("Does the base still paint other things as it did?", "veneer evaluate RUN"))
    if not any(moved.ratio is not None for moved in evidence.moved.values()):
        missing.append(Unjudged("How far did the weights move?", "base and adapter file must be here"))
    if evidence.captions is None:
        missing.append(Unjudged("Captions and sizes of pictures?", "the pictures must be where config.yaml says"))
    elif evidence.pictures.alike is None:
        missing.append(Unjudged("Are pictures there twice, or too small?", measure))
    return missing
