"""Which pictures are held out: as many as were asked for, and the same ones when others are added."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from veneer.data.holdout import MANY, choose_held_out
from veneer.rng import key


def ids_of(count: int, first: int = 0) -> list[str]:
    return [f"{number:032x}" for number in range(first, first + count)]


def in_groups(ids: list[str], size: int) -> dict[str, str]:
    return {id: ids[place - place % size] for place, id in enumerate(ids)}


@pytest.mark.parametrize(
    ("count", "share", "held"), [(9, 0.1, 0), (10, 0.01, 1), (20, 0.15, 3), (50, 0.58, 29), (2, 0.99, 1)]
)
def test_of_few_pictures_those_are_held_out_that_a_hash_ranks_first(count: int, share: float, held: int) -> None:
    ranked = sorted(ids_of(count), key=lambda id: key("held out", id))
    assert choose_held_out(ids_of(count), share) == set(ranked[:held])


@settings(max_examples=60, deadline=None)
@given(
    first=st.integers(0, 10**9),
    count=st.integers(MANY, 400),
    added=st.integers(1, 300),
    share=st.floats(0.2, 0.9),
    size=st.integers(1, 4),
)
def test_pictures_that_are_added_move_none_from_one_side_to_the_other(
    first: int, count: int, added: int, share: float, size: int
) -> None:
    """Also in groups, if those that are added are of groups of their own."""
    before = ids_of(count - count % size, first)
    after = before + ids_of(added, first + count)
    groups = in_groups(before, size) | in_groups(after[len(before) :], size)
    held = choose_held_out(before, share, groups)
    assume(len(before) >= MANY and held)
    assert choose_held_out(after, share, groups) & set(before) == held


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 300), share=st.floats(0, 0.99), size=st.integers(1, 30))
def test_groups_are_never_parted_and_never_is_all_held_out(count: int, share: float, size: int) -> None:
    ids = ids_of(count)
    groups = in_groups(ids, size)
    held = choose_held_out(ids, share, groups)
    assert {groups[id] for id in held}.isdisjoint(groups[id] for id in ids if id not in held)
    assert len(held) < count and (share or not held)


def test_a_picture_moves_only_if_it_gets_a_lookalike() -> None:
    before = ids_of(200)
    held = choose_held_out(before, 0.2)
    alone: Mapping[str, str] = {id: id for id in before}
    moved = 0
    for added, partner in zip(ids_of(100, 1000), before, strict=False):
        after = choose_held_out([*before, added], 0.2, {**alone, added: partner})
        assert held ^ (after - {added}) <= {partner}
        assert (added in after) == (partner in after)
        moved += partner in held ^ after
    assert 0 < moved < 50


@pytest.mark.parametrize("size", [1, 5])
def test_large_groups_are_held_out_as_often_as_small_ones(size: int) -> None:
    ids = ids_of(5000)
    held = choose_held_out(ids, 0.2, in_groups(ids, size))
    assert len(held) == pytest.approx(1000, abs=4 * (5000 * 0.2 * 0.8 * size) ** 0.5)


def test_a_group_larger_than_the_share_is_trained_on() -> None:
    ids = ids_of(300)
    for shift in range(20):
        groups = {id: id for id in ids} | dict.fromkeys(ids[shift : shift + 100], ids[shift])
        assert choose_held_out(ids, 0.1, groups).isdisjoint(ids[shift : shift + 100])


def test_names_and_order_do_not_matter() -> None:
    for count in (30, 300):
        ids = ids_of(count)
        groups = in_groups(ids, 3)
        renamed = {id: groups[id][::-1] for id in reversed(ids)}
        assert choose_held_out(ids, 0.3, groups) == choose_held_out(ids[::-1], 0.3, renamed)


@pytest.mark.parametrize("first", range(0, 6000, 200))
def test_of_many_pictures_too_a_group_larger_than_the_share_is_trained_on(first: int) -> None:
    """By its hash alone one group in two would be held out, and with it more than half of the pictures."""
    ids = ids_of(MANY + 10, first)
    large = ids[: MANY - 30]
    held = choose_held_out(ids, 0.5, {id: large[0] if id in large else id for id in ids})
    assert held and held.isdisjoint(large)
