"""The diagnosis: causes leave out what they explain, problems come before notes, questions stay open."""

from __future__ import annotations

from tests.evidence import NOTHING, config_of, evidence_of
from veneer.doctor.diagnosis import EXPLAINS, RULES, diagnose
from veneer.doctor.evidence import (
    CaptionStatistics,
    Ending,
)
from veneer.doctor.rules import fit


def test_a_cause_leaves_out_what_it_explains() -> None:
    config = config_of(**{"train.warmup_steps": 190})
    evidence = evidence_of(config, held_out=NOTHING, training=NOTHING)
    assert fit.underfit(evidence) is not None
    assert [one.name for one in diagnose(evidence).findings] == ["warmup_too_long"]


def test_problems_come_before_notes() -> None:
    evidence = evidence_of(ending=Ending("stopped", 50), captions=CaptionStatistics(100, 1, {}, "a thing"))
    assert [one.level for one in diagnose(evidence).findings] == ["problem", "note"]


def test_what_is_explained_exists() -> None:
    explained = {name for names in EXPLAINS.values() for name in names} | EXPLAINS.keys()
    assert explained <= {rule.__name__ for rule in RULES}


def test_what_cannot_be_judged_is_said_with_a_way() -> None:
    bare = evidence_of(measurements=None, held_out=None, weight_changes={}, captions=None, training=None)
    unjudged = diagnose(bare).unjudged
    assert len(unjudged) == 5 and all(one.how for one in unjudged)


def test_without_a_log_nothing_is_said_of_the_ending() -> None:
    unlogged = evidence_of(ending=Ending("unknown", 0), loss_curve=())
    diagnosis = diagnose(unlogged)
    assert not diagnosis.has_problems and any("run.jsonl" in one.how for one in diagnosis.unjudged)
    assert not any("run.jsonl" in one.how for one in diagnose(evidence_of()).unjudged)
