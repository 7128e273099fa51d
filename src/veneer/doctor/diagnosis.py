"""The diagnosis of a run: all rules in the order of causes, and which findings explain others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydantic import computed_field

from veneer.doctor.evidence import Evidence
from veneer.doctor.finding import Finding, Rule
from veneer.doctor.rules import captions, endings, fit, learning_rate, memory, pictures, settings, text_encoder

__all__ = ["EXPLAINS", "RULES", "Diagnosis", "Unjudged", "diagnose"]

RULES: tuple[Rule, ...] = (
    memory.out_of_memory,
    endings.nan,
    endings.failed,
    endings.cut_off,
    endings.unfinished,
    pictures.few_pictures,
    captions.captions_wrong,
    learning_rate.dead_adapter,
    settings.decay_too_strong,
    settings.dropout_too_high,
    settings.warmup_too_long,
    text_encoder.text_encoder_overcooked,
    learning_rate.diverged,
    learning_rate.rate_too_high,
    learning_rate.rate_too_low,
    fit.underfit,
    pictures.duplicated,
    fit.overfit,
    fit.drift,
    captions.captions_cut,
    captions.captions_alike,
    captions.captions_leak_style,
    captions.trigger_missing,
    captions.trigger_unused,
    pictures.held_out_leaked,
    pictures.blurred,
    pictures.left_out,
    pictures.no_held_out,
    pictures.few_held_out,
    settings.strength_far_from_one,
)
"""All rules, causes before their effects; a rule's name is that of its finding."""

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
"""Findings that a problem brings with it, by its name, so that they are not reported as well."""


@dataclass(frozen=True)
class Unjudged:
    """A question that the evidence does not answer.

    Attributes:
        what: the question.
        how: how to get the evidence: a sentence, or a command.
    """

    what: str
    how: str


@dataclass(frozen=True)
class Diagnosis:
    """The findings of a run.

    Attributes:
        findings: problems, then notes; causes first.
        unjudged: questions that the evidence does not answer.
    """

    findings: tuple[Finding, ...]
    unjudged: tuple[Unjudged, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def has_problems(self) -> bool:
        """Whether any finding is a problem."""
        return bool(self.problems)

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that are problems."""
        return tuple(finding for finding in self.findings if finding.is_problem)


def diagnose(evidence: Evidence) -> Diagnosis:
    """Apply every rule, and leave out findings that a problem explains."""
    findings = [finding for rule in RULES if (finding := rule(evidence)) is not None]
    explained = {name for finding in findings if finding.is_problem for name in EXPLAINS.get(finding.name, ())}
    remaining = (finding for finding in findings if finding.name not in explained)
    return Diagnosis(tuple(sorted(remaining, key=lambda finding: not finding.is_problem)), tuple(_unjudged(evidence)))


def _unjudged(evidence: Evidence) -> Iterator[Unjudged]:
    if evidence.ending.how == "failed":
        return
    measure = f"veneer doctor {evidence.run} --measure"
    if evidence.ending.how == "unknown":
        yield Unjudged("How did it end, and how did its loss fall?", "its log, run.jsonl, must be here")
    yield from _unjudged_captions(evidence, measure)
    if evidence.held_out is None:
        yield Unjudged("Did it learn or memorise?", "hold pictures out: data.held_out=0.1")
    if evidence.drift is None:
        yield Unjudged("Does the base still paint other things as it did?", f"veneer evaluate {evidence.run}")
    if not any(change.ratio is not None for change in evidence.weight_changes.values()):
        yield Unjudged("How far did the weights move?", "base and adapter file must be here")
    if evidence.captions is None:
        yield Unjudged("Captions and sizes of pictures?", "the pictures must be where config.yaml says")
    elif evidence.pictures.near_duplicates is None:
        yield Unjudged("Are pictures there twice, or too small?", measure)


def _unjudged_captions(evidence: Evidence, measure: str) -> Iterator[Unjudged]:
    question = "Do the captions fit their pictures?"
    if evidence.measurement_error:
        yield Unjudged(question, f"nothing could be measured: {evidence.measurement_error}")
    elif evidence.measurements is None:
        yield Unjudged(f"{question} Is every part of the adapter of use?", measure)
    elif evidence.measurements.train_captions is None:
        yield Unjudged(question, "all are the same words, so nothing tells")
