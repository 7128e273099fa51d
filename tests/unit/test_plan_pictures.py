"""Pictures that folders list against those that a run checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny_config
from veneer.data.preflight import survey
from veneer.plan.pictures import PictureCounts

CASES: dict[str, tuple[dict[str, Any], PictureCounts]] = {
    "plain": ({}, PictureCounts(9, 12, 12)),
    "caption dropout": ({"caption_dropout": 0.1}, PictureCounts(9, 12, 13)),
    "class pictures": ({"prior": {"prompt": "a shape", "count": 5}}, PictureCounts(9, 17, 13)),
}


@pytest.mark.parametrize(("data", "counts"), CASES.values(), ids=CASES)
def test_pictures_are_counted_in_folders_as_in_a_checked_dataset(
    tiny_pictures: Path, data: dict[str, Any], counts: PictureCounts
) -> None:
    config = tiny_config(tiny_pictures, data=data)
    assert PictureCounts.from_folders(config) == PictureCounts.from_dataset(survey(config.data), config) == counts
