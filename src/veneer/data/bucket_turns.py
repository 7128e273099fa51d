"""The order in which buckets take turns, a micro-batch each.

Bucket b of rate r_b has its turn k at (k + u) R / r_b, where R is the sum of all rates and u in [0, 1) is keyed by the
bucket and the turn: at random within its own stretch (stratified sampling). The turns of all buckets in the order of
their places are the run's micro-batches. So after any of them each bucket has had its share of turns to within about
one, and exactly its share after each cycle in which all have a whole number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from veneer.rng import uniform

__all__ = ["BucketTurns"]

_STRETCH = 256
"""Micro-batches that are put in order at a time."""


class BucketTurns:
    """Whose turn each micro-batch is, found without those before it.

    Args:
        names: of the buckets, each once.
        rates: how many pictures of each an epoch shows.
        seed: of the run.
    """

    def __init__(self, names: Sequence[str], rates: Sequence[float], seed: int) -> None:
        self._names, self._seed = names, seed
        total = sum(rates)
        self._periods = [total / rate for rate in rates]
        self._stretch = max(_STRETCH, 2 * len(rates))
        self._turns_in = lru_cache(maxsize=8)(self._order)
        self._turns_before = lru_cache(maxsize=16)(self._count_before)

    def turn(self, number: int) -> tuple[int, int]:
        """Return the index of the bucket that a micro-batch is of, and how many turns it had before."""
        if len(self._names) == 1:
            return 0, number
        stretch = number // self._stretch  # in which it is, or in the one before or after
        while number < self._turns_before(stretch):
            stretch -= 1
        while number >= self._turns_before(stretch + 1):
            stretch += 1
        return self._turns_in(stretch)[number - self._turns_before(stretch)]

    def _order(self, stretch: int) -> list[tuple[int, int]]:
        """Return the turns within a stretch, as bucket and number, in the order of their places."""
        begin, end = stretch * self._stretch, (stretch + 1) * self._stretch
        turns = [
            (self._place(bucket, turn), bucket, turn)
            for bucket in range(len(self._names))
            for turn in range(self._count(bucket, begin), self._count(bucket, end))
        ]
        return [(bucket, turn) for _, bucket, turn in sorted(turns)]

    def _count_before(self, stretch: int) -> int:
        return sum(self._count(bucket, stretch * self._stretch) for bucket in range(len(self._names)))

    def _count(self, bucket: int, end: int) -> int:
        """Return how many turns of a bucket lie before a place."""
        turn = max(0, int(end / self._periods[bucket]) - 1)
        while self._place(bucket, turn) < end:
            turn += 1
        return turn

    def _place(self, bucket: int, turn: int) -> float:
        return (turn + uniform(self._seed, self._names[bucket], turn, "bucket turn")) * self._periods[bucket]
