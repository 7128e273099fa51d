"""While records are made the collector leaves them alone, and afterwards it sees all again."""

from __future__ import annotations

import gc

import pytest

from veneer.data.collector import spared


def test_what_is_made_stays_out_of_sight_until_the_end() -> None:
    before = gc.get_freeze_count()
    seen = [gc.get_freeze_count() for _ in spared(range(5), every=2)]
    assert seen[:2] == [before] * 2 and min(seen[2:]) > before
    assert gc.get_freeze_count() == 0


def test_a_fault_in_between_ends_it_as_well() -> None:
    def fail() -> None:
        for number in spared(range(5), every=1):
            if number == 3:
                raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.get_freeze_count() == 0
