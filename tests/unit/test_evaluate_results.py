"""What was measured, as plain data: to JSON and back without loss."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veneer.errors import UserError
from veneer.evaluate.comparison import paired_difference
from veneer.evaluate.results import (
    EVALUATION,
    Band,
    Copying,
    Evaluated,
    Evaluation,
    Gap,
    Neighbour,
    PictureScore,
    PromptFidelity,
    Score,
    Share,
    read_evaluation,
    write_evaluation,
)
from veneer.serialise import from_data, to_data, to_json

SCORE = Score(-0.1, -0.2, -0.05, 1.0, 0.9, 12, 8, "better")
OPEN = Score(-0.1, -math.inf, math.inf, 1.0, 0.9, 1, 8, "too few pictures to tell")
NEAR = Neighbour("a cat", "evaluation/sample-000.png", "pictures/cat.png", 12.5, 0.1, True, True)
FAR = replace(NEAR, angle=60.0, flagged=False)
WHOLE = Evaluation(
    adapter="pytorch_lora_weights.safetensors",
    base="bundled",
    step=300,
    held_out=SCORE,
    training=replace(SCORE, mean=-0.3),
    gap=Gap(0.2, 0.1, 0.3, 12, 12),
    bands=(Band(0.0, 0.5, SCORE), Band(0.5, 1.0, OPEN)),
    drift=SCORE,
    drift_source="pictures of the class",
    copying=Copying((NEAR, FAR), (FAR,), 30.0, 1, 1.0, "held-out pictures"),
    scores=(PictureScore("clip_text", 0.2, 0.3, 0.1, 0.05, 0.15, 12, True),),
    prompt_fidelity=PromptFidelity(
        *(Share(0.9, 0.7, 0.97), Share(0.6, 0.4, 0.8), Share(-0.3, -0.5, -0.1), Share(0.61, 0.5, 0.71)),
        *(0.2, 0.1, 1 / 9, 32, 1, "lost"),
    ),
    notes=("ünusual: “quoted”",),
)


@pytest.mark.parametrize("evaluation", [WHOLE, Evaluation("a.safetensors", "base")], ids=["whole", "nothing"])
def test_an_evaluation_comes_back_as_it_went(evaluation: Evaluation, tmp_path: Path) -> None:
    assert write_evaluation(evaluation, tmp_path) == tmp_path / EVALUATION
    assert read_evaluation(tmp_path) == evaluation

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    told = json.loads((tmp_path / EVALUATION).read_text("utf-8"), parse_constant=refuse)
    assert told == to_data(evaluation)
    assert to_json(evaluation) == (tmp_path / EVALUATION).read_text("utf-8")


def test_a_name_that_is_no_text_is_written_too(tmp_path: Path) -> None:
    """POSIX lets a file's name be any bytes, which Python reads as surrogates."""
    name = os.fsdecode(b"pictures/\xff.png")
    evaluation = replace(WHOLE, notes=(f"{name} and a ca\u00f1on",))
    write_evaluation(evaluation, tmp_path)
    assert read_evaluation(tmp_path) == evaluation


def test_open_ends_are_null() -> None:
    told = to_data(WHOLE)["bands"][1]["score"]
    assert (told["low"], told["high"]) == (None, None)
    assert from_data(Score, told) == OPEN


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
def test_any_score_comes_back(pictures: int, draws: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    score = paired_difference(random.random((pictures, draws)), random.random((pictures, draws)), resamples=40)
    assert from_data(Score, json.loads(json.dumps(to_data(score)))) == score


def test_a_line_of_the_log_is_read_with_its_other_keys() -> None:
    event = Evaluated(100, SCORE, SCORE, Gap(0.2, 0.1, 0.3, 12, 12), (Band(0.0, 1.0, SCORE),), 50)
    line = {"event": "Evaluated", "seconds": 1.5, **json.loads(json.dumps(to_data(event)))}
    assert from_data(Evaluated, line) == event


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert read_evaluation(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "it: "),
        ("{}", "adapter: Field required"),
        ('{"adapter": "a", "base": "b", "held_out": {"mean": 1}}', "held_out.low: Field required"),
    ],
)
def test_a_file_that_holds_no_evaluation_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / EVALUATION).write_text(text)
    with pytest.raises(UserError) as caught:
        read_evaluation(tmp_path)
    assert caught.value.code == "evaluate.unreadable"
    assert f"evaluation.json: is not an evaluation ({reason}" in str(caught.value)
    assert str(caught.value).endswith("; run veneer evaluate again")


def test_all_of_it_is_told_in_words() -> None:
    lines = str(WHOLE).splitlines()
    assert lines[0] == (
        "held-out loss 1.0000 -> 0.9000, difference -0.1000, 95 % interval [-0.2000, -0.0500] over 12 pictures: better"
    )
    starts = ["  time 0.00 to 0.50: ", "  time 0.50 to 1.00: ", "training loss ", "memorisation gap +0.2000"]
    starts += [
        "drift, on pictures of the class: ",
        "things: 90% [70, 97] of the base",
        "copying: 1 of 2 samples",
        "clip_text 0.2000 -> 0.3000",
    ]
    assert [line.startswith(start) for line, start in zip(lines[1:], starts, strict=False)] == [True] * len(starts)
    assert lines[-1] == "note: ünusual: “quoted”"
    assert str(Evaluation("a", "b")) == ""
