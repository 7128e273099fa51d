"""The pairs found are those of the definition, whatever the vectors are; and the search compares few of all."""

from __future__ import annotations

from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.manifest import thumbs
from veneer.data import near_pairs
from veneer.data.near_pairs import SearchCost, visit_near_pairs


class Recorder:
    """Keeps all pairs that it is told of."""

    def __init__(self) -> None:
        self.pairs: set[tuple[int, int]] = set()

    def meet(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> None:
        assert (first != second).all()
        self.pairs |= {(min(pair), max(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)}

    def meet_all(self, alike: NDArray[np.intp]) -> None:
        self.pairs |= {(one, other) for one in alike.tolist() for other in alike.tolist() if one < other}


def found(vectors: NDArray[np.uint8], near: int) -> tuple[set[tuple[int, int]], SearchCost]:
    recorder = Recorder()
    return recorder.pairs, visit_near_pairs(vectors, near, recorder)


def defined(vectors: NDArray[np.uint8], near: int) -> set[tuple[int, int]]:
    apart = np.abs(vectors[:, None].astype(int) - vectors[None]).max(axis=2, initial=0)
    first, second = np.nonzero(apart <= near)
    return {(one, other) for one, other in zip(first.tolist(), second.tolist(), strict=True) if one < other}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 150),
    components=st.sampled_from([1, 2, 5, 40, 100]),
    near=st.integers(0, 40),
    spread=st.sampled_from([3, 30, 60, 255]),
    step=st.sampled_from([1, 12, 24, 25]),
    split_cost=st.sampled_from([0.001, 1, 50]),
    clusters=st.integers(1, 20),
)
def test_all_pairs_are_found_and_no_others(
    seed: int, count: int, components: int, near: int, spread: int, step: int, split_cost: float, clusters: int
) -> None:
    """Also with vectors at whole steps from each other, where what is near and what is not lie side by side."""
    random = np.random.default_rng(seed)
    centres = random.integers(0, 256, (clusters, components))
    vectors = centres[random.integers(0, clusters, count)] + random.integers(0, spread + 1, (count, components)) // step
    vectors = np.clip(vectors * step if random.random() < 0.5 else vectors, 0, 255).astype(np.uint8)
    sizes = {"_SMALL": 8, "_LARGE": 32, "_AT_ONCE": 64, "_PAIRS_AT_ONCE": 500, "_SPLIT_COST": split_cost}
    with mock.patch.multiple(near_pairs, **sizes):
        assert found(vectors, near)[0] == defined(vectors, near)


def test_thumbnails_like_those_of_photographs_are_compared_with_few_others() -> None:
    """Of 8,000 each would be compared with 4,000."""
    vectors = thumbs(8000, 0).reshape(8000, -1)
    pairs, cost = found(vectors, 24)
    half = found(vectors[:4000], 24)[1]
    assert len(pairs) >= 80
    assert cost.compared < 1000 * 8000 and cost.parted < 20 * 8000 and cost.verified < 5 * 8000
    assert cost.compared < 2.8 * half.compared  # as N^1.5
