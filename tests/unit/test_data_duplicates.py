from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from veneer.data.duplicates import compare, lookalikes, near_duplicates


def test_near_duplicates_are_those_of_the_plain_definition() -> None:
    """Of the pairs that are alike, those of each picture with the first one of each side."""
    random = np.random.default_rng(0)
    thumbs = random.integers(100, 135, (60, 2, 2, 3), dtype=np.uint8)
    held = random.random(60) < 0.3
    apart = np.abs(thumbs[:, None].astype(int) - thumbs[None]).max(axis=(2, 3, 4))
    alike = {i: [j for j in range(60) if j != i and apart[i, j] <= 24] for i in range(60)}
    firsts = {(i, next((j for j in alike[i] if held[j] == side), None)) for i in alike for side in (False, True)}
    expected = {(min(i, j), max(i, j)) for i, j in firsts if j is not None}
    assert near_duplicates(thumbs, held) == sorted(expected)
    assert 60 < len(expected) < sum(map(len, alike.values())) / 2
    flat = np.array([0, 24, 49], np.uint8).repeat(12).reshape(3, 2, 2, 3)
    assert near_duplicates(flat, np.zeros(3, bool)) == [(0, 1)]


def test_pictures_that_are_all_alike_are_as_many_pairs_as_pictures() -> None:
    thumbs = np.zeros((500, 8, 8, 3), np.uint8)
    held = np.arange(500) >= 400
    pairs = near_duplicates(thumbs, held)
    assert len(pairs) < 1000 and {place for pair in pairs for place in pair} == set(range(500))
    assert all((any(held[i] != held[j] for i, j in pairs if place in (i, j))) for place in range(500))


def smooth(random: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Thumbnails of 8 x 8 whose cells are like their neighbours, as those of photographs are, some of them copies."""
    coarse = random.normal(0, 45, (count, 2, 2, 1)).repeat(4, axis=1).repeat(4, axis=2)
    thumbs = 128 + coarse + random.normal(0, 9, (count, 8, 8, 3))
    thumbs[count // 2 :: 7] = thumbs[: len(thumbs[count // 2 :: 7])] + random.integers(-7, 8, (1, 8, 8, 3))
    return np.clip(thumbs, 0, 255).astype(np.uint8)


def test_thumbnails_that_are_parted_are_compared_as_those_that_are_not() -> None:
    random = np.random.default_rng(1)
    thumbs, held = smooth(random, 900), random.random(900) < 0.2
    expected = set()
    for index in range(900):
        alike = lookalikes(thumbs, thumbs[index])
        alike[index] = False
        for side in (False, True):
            others = np.flatnonzero(alike & (held == side))
            expected |= {(min(index, other), max(index, other)) for other in map(int, others[:1])}
    assert len(expected) > 60
    assert near_duplicates(thumbs, held) == sorted(expected)


def test_many_that_are_alike_are_not_each_compared_with_each() -> None:
    random = np.random.default_rng(2)
    thumbs = random.integers(100, 124, (20_000, 8, 8, 3), dtype=np.uint8)
    held = np.arange(20_000) % 2 == 1
    pairs = near_duplicates(thumbs, held)
    assert pairs == sorted({(first, other) for other in range(1, 20_000) for first in (0, 1) if first < other})


@pytest.mark.parametrize("count", [60, 900])
@pytest.mark.parametrize("seed", range(3))
def test_groups_are_the_components_of_the_graph_of_pairs(seed: int, count: int) -> None:
    """As scipy finds them, whose labels are in the order of the first members."""
    random = np.random.default_rng(seed)
    thumbs = random.integers(100, 148, (count, 2, 2, 3), dtype=np.uint8) if count < 100 else smooth(random, count)
    graph = np.stack([lookalikes(thumbs, thumb) for thumb in thumbs])
    _, labels = connected_components(graph)
    _, first = np.unique(labels, return_index=True)
    assert compare(thumbs, np.zeros(count, bool)).group_N.tolist() == first[labels].tolist()
    assert 1 < len(first) < count


def test_a_chain_of_lookalikes_is_one_group_though_no_first_links_it() -> None:
    chain = np.array([0, 72, 24, 48, 200], np.uint8).repeat(12).reshape(5, 2, 2, 3)
    found = compare(chain, np.zeros(5, bool))
    assert found.pairs == [(0, 2), (1, 3)] and found.group_N.tolist() == [0, 0, 0, 0, 4]


@pytest.mark.parametrize("count", [0, 1])
def test_no_picture_and_one_are_alike_to_none(count: int) -> None:
    found = compare(np.zeros((count, 8, 8, 3), np.uint8), np.zeros(count, bool))
    assert found.pairs == [] and found.group_N.tolist() == list(range(count))
