"""Findings: changes of the configuration as overrides, and numbers as text."""

from __future__ import annotations

from typing import Any

import pytest

from tests.errors import raises_code
from tests.evidence import config_of
from veneer.doctor.finding import Change, Finding, apply_change, percent


def test_no_finding_without_evidence() -> None:
    with pytest.raises(AssertionError):
        Finding("overfit", "It is.", ())


@pytest.mark.parametrize(
    ("change", "override"),
    [
        (Change("train.max_steps", 3, ""), "train.max_steps=3"),
        (Change("train.learning_rate", 1e-5, ""), "train.learning_rate=1e-05"),
        (Change("train.learning_rate", 3 * 1e-4, ""), "train.learning_rate=0.0003"),
        (Change("train.learning_rate", 0.00012345678, ""), "train.learning_rate=0.00012345678"),
        (Change("adapter.alpha", 1024.0, ""), "adapter.alpha=1024"),
        (Change("adapter.alpha", 1 / 3, ""), "adapter.alpha=0.3333333333333333"),
        (Change("data.flip", True, ""), "data.flip=true"),
        (Change("train.max_grad_norm", None, ""), "train.max_grad_norm=null"),
        (Change("data.trigger", "no: 1", ""), 'data.trigger="no: 1"'),
        (Change("data.trigger", "true", ""), 'data.trigger="true"'),
        (Change("adapter.text_encoders.text_encoder", (), ""), "adapter.text_encoders.text_encoder={}"),
    ],
)
def test_changes_are_overrides(change: Change, override: str) -> None:
    assert change.override == override
    setting: Any = apply_change(config_of(), change).model_dump()
    for part in change.key.split("."):
        setting = setting[part]
    value = pytest.approx(change.value, rel=1e-12) if isinstance(change.value, float) else change.value
    assert setting == value if change.value != () else setting is not None


def test_a_change_that_no_configuration_takes_is_refused() -> None:
    with raises_code("config.unknown_key"):
        apply_change(config_of(), Change("train.stepz", 3, ""))


@pytest.mark.parametrize(
    ("share", "text"), [(0.5, "50%"), (-0.123, "-12%"), (0.0123, "1.2%"), (0.0, "0%"), (1.0, "100%")]
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text
