from __future__ import annotations

import numpy as np

from veneer.data.duplicates import near_duplicates


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
