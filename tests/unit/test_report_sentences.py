"""The sentences of a report: verdicts and endings."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.reports import evaluated, evaluation, score
from veneer.evaluate.results import Score
from veneer.report.content import Ending, TrainingSummary
from veneer.report.sentences import ending_sentence, run_verdict


def test_verdicts() -> None:
    def verdict(held_out: Score | None) -> tuple[str, str]:
        return run_verdict(replace(evaluation(), held_out=held_out), None)

    assert verdict(score(-0.5)) == (
        "good",
        "The adapter helps: on 64 pictures that training never saw, it lowers the denoising loss by 45.5\xa0% "
        "(\u22120.5000; 95\xa0% interval \u22120.5500 to \u22120.4500).",
    )
    assert verdict(score(0.5))[0] == "bad" and "does harm" in verdict(score(0.5))[1]
    assert verdict(score(0.0, half=0.001))[1].startswith("The adapter has no effect to speak of on 64 pictures")
    assert verdict(score(-0.04))[1].startswith("64 pictures are too few to tell whether")
    alone = Score(-0.5, -math.inf, math.inf, 1.0, 0.5, 1, 8, "too few pictures to tell")
    assert verdict(alone)[1].startswith("One picture tells nothing of others: on one picture that training")
    assert verdict(None)[0] == "unmeasured"
    training = TrainingSummary(Ending("running", 120, 300), None, (evaluated(100, -0.5, 100),), (), 0, None, None)
    assert run_verdict(None, training)[1].startswith("After step 100: The adapter helps")
    assert "not known yet" in run_verdict(None, None)[1]


@pytest.mark.parametrize("how", ["finished", "stopped early", "stopped", "failed", "cut off", "running"])
def test_every_ending_has_a_sentence(how: Any) -> None:
    assert "300" in ending_sentence(Ending(how, 120, 300, "a fault"))
