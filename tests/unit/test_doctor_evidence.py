"""Evidence: written as JSON and read back."""

from __future__ import annotations

import math

from tests.evidence import GAIN, evidence_of
from veneer.doctor.evidence import (
    CopyCheck,
    Effect,
    MemoryEstimate,
    ValidationScore,
    read_evidence,
    write_evidence,
)


def test_evidence_is_read_back_as_it_was_written() -> None:
    evidence = evidence_of(
        validation_scores=(ValidationScore(10, GAIN),),
        memory=MemoryEstimate(5, {"weights": 4}, None, {}),
        copies=CopyCheck(1, 8, 0.1, ("a", "b")),
    )
    assert read_evidence(write_evidence(evidence)) == evidence


def test_one_picture_tells_nothing_of_others() -> None:
    assert math.isinf(Effect(-0.5, None, None, 0.6, 0.1, 1).standard_error)
