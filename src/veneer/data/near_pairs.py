"""Find all pairs of vectors that differ by at most so much in every component, without comparing each with each.

A component and a border part vectors in two: those up to a bit beyond the border, and those from a bit before it, so
that two near ones are together in at least one part; the few around the border are in both (a k-d tree with overlap,
Liu et al. 2004, "An Investigation of Practical Approximate Nearest Neighbor Algorithms", section 3; here nothing is
lost). Parting goes on as long as it saves more comparisons than it costs. Within a part, pairs are compared by some
bits of each vector, and those that may be near by all components.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bytes", "Indices", "PairVisitor", "SearchCost", "visit_near_pairs"]

Indices = NDArray[np.intp]
Bytes = NDArray[np.uint8]
_Items = NDArray[np.int32]
_Words = NDArray[np.uint32]

_SMALL = 2**10
"""Vectors of a part, at most, that is compared together with others."""
_LARGE = 2**12
"""Vectors from which on a part gets borders of its own; smaller ones of one origin share theirs."""
_SPLITS = 6
"""Splits in a row, at most, before parts are looked at."""
_SPLIT_COST = 50
"""Comparisons that take as long as putting one vector into a part."""
_SAMPLED = 512
"""Pairs by which components are chosen."""
_CANDIDATES = 64
"""Components that vectors may be parted by; more would say the same again."""
_BITS = 31
"""Components by which vectors of a part are compared first; another bit keeps parts apart."""
_AT_ONCE = 2**15
"""Vectors that are compared in one go, whose bits the processor's cache holds."""
_PAIRS_AT_ONCE = 2**19
"""Pairs of a large part that are compared in one go, likewise."""
_FIRST_COMPONENTS = 16
"""Components that tell most pairs apart whose bits do not."""


class PairVisitor(Protocol):
    """What is told which vectors are near each other."""

    def meet(self, first: Indices, second: Indices) -> None:
        """Take pairs that are near each other, (P,) and (P,); a pair may come again, either way round."""

    def meet_all(self, alike: Indices) -> None:
        """Take vectors (A,) of which each is near each."""


@dataclass
class SearchCost:
    """What a search did, to tell how it grows.

    Attributes:
        parted: vectors that were put into a part, over all splits.
        compared: pairs that were compared by their bits.
        verified: pairs that were compared by their components.
    """

    parted: int = 0
    compared: int = 0
    verified: int = 0


def visit_near_pairs(vectors_ND: Bytes, near: int, visitor: PairVisitor) -> SearchCost:
    """Show a visitor all pairs of vectors (N, D) that differ by at most ``near`` in every component.

    Of vectors spread as thumbnails of photographs are, the cost grows as about N^1.5; where many are near each other,
    and not quite, each of these is compared with each.

    Returns:
        What it took.
    """
    search = _Search(vectors_ND, near, visitor)
    search.run()
    return search.cost


@dataclass(frozen=True)
class _Parts:
    """Parts of the vectors.

    Attributes:
        items: indices of the vectors, part after part, (M,).
        sizes: how many each part has, (P,).
    """

    items: _Items
    sizes: Indices

    @classmethod
    def named(cls, items: _Items, names_M: NDArray[np.int32]) -> _Parts:
        """Return the parts of items of one name each."""
        order = np.argsort(names_M)
        ends = np.flatnonzero(np.diff(names_M[order], append=-1))
        return cls(items[order], np.diff(ends, prepend=-1))

    @classmethod
    def single(cls, items: _Items) -> _Parts:
        """Return one part of all items."""
        return cls(items, np.array([len(items)]))

    @property
    def ends(self) -> Indices:
        """Behind the last item of each part, (P,)."""
        return np.cumsum(self.sizes)

    @property
    def pairs(self) -> int:
        """How many pairs there are within parts."""
        return int((self.sizes * (self.sizes - 1) // 2).sum())

    @property
    def names(self) -> NDArray[np.int32]:
        """The number of each item's part, (M,)."""
        return np.repeat(np.arange(len(self.sizes), dtype=np.int32), self.sizes)

    def where(self, chosen_P: NDArray[np.bool_]) -> _Parts:
        """Return some of the parts."""
        return _Parts(self.items[np.repeat(chosen_P, self.sizes)], self.sizes[chosen_P])

    def each(self) -> Iterator[_Parts]:
        """Yield each part alone."""
        for end, size in zip(self.ends.tolist(), self.sizes.tolist(), strict=True):
            yield _Parts.single(self.items[end - size : end])


@dataclass(frozen=True)
class _Borders:
    """Where vectors may be parted: each component at its median.

    Attributes:
        columns: the components, those first that tell most pairs apart.
        left: greatest value of the left part, for each.
        right: value that those of the right part exceed, for each.
        splits: how many of them are worth parting by.
    """

    columns: list[int]
    left: list[int]
    right: list[int]
    splits: int


@dataclass(frozen=True)
class _Bits:
    """Bits of items, of which no component's is set in ``low`` of one and in ``high`` of another that is near it."""

    low: _Words
    high: _Words

    @classmethod
    def joined(cls, several: list[_Bits]) -> _Bits:
        return cls(np.concatenate([one.low for one in several]), np.concatenate([one.high for one in several]))

    def __getitem__(self, places: Indices) -> _Bits:
        return _Bits(self.low[places], self.high[places])


class _Search:
    def __init__(self, vectors_ND: Bytes, near: int, visitor: PairVisitor) -> None:
        self._vectors_ND, self._near, self._visitor, self.cost = vectors_ND, near, visitor, SearchCost()
        self._random = np.random.default_rng(0)
        # in any order but their own, for neighbouring components say the same
        order = self._random.permutation(vectors_ND.shape[1])
        self._columns_CN = np.ascontiguousarray(vectors_ND[:, order[:_CANDIDATES]].T)
        self._firsts_NF = vectors_ND[:, order[:_FIRST_COMPONENTS]]
        self._deferred = list[tuple[_Parts, _Bits]]()

    def run(self) -> None:
        waiting = [_Parts.single(np.arange(len(self._vectors_ND), dtype=np.int32))]
        while waiting:
            parts = waiting.pop()
            waiting += self._divide(parts) if len(parts.items) > 1 else ()
        self._compare_deferred()

    def _divide(self, parts: _Parts) -> Iterator[_Parts]:
        """Compare what is not worth parting, and yield what the others are parted into."""
        borders = self._choose_borders(parts)
        if borders.splits:
            finer = self._part(parts, borders)
            is_large_P = finer.sizes >= _LARGE
            yield finer.where((finer.sizes > 1) & ~is_large_P)
            yield from finer.where(is_large_P).each()
        elif len(parts.sizes) == 1 and len(parts.items) > _SMALL:
            self._compare_large(parts.items, borders)
        else:
            is_small_P = parts.sizes <= _SMALL
            self._defer(parts.where(is_small_P & (parts.sizes > 1)), borders)
            yield from parts.where(~is_small_P).each()

    def _choose_borders(self, parts: _Parts) -> _Borders:
        """Choose the components that tell most pairs of a sample apart, one after the other."""
        place_S = self._random.integers(0, len(parts.items), _SAMPLED)
        starts = parts.ends - parts.sizes
        part_S = np.searchsorted(starts, place_S, side="right") - 1
        other_S = starts[part_S] + (self._random.random(_SAMPLED) * parts.sizes[part_S]).astype(np.intp)
        one_CS, other_CS = (self._columns_CN[:, parts.items[places]] for places in (place_S, other_S))
        middle_C = np.partition(one_CS, _SAMPLED // 2, axis=1)[:, _SAMPLED // 2].astype(np.intp)
        left_C, right_C = middle_C + self._near - self._near // 2, middle_C - self._near // 2
        is_left_CS, is_right_CS = one_CS <= left_C[:, None], one_CS > right_C[:, None]
        # in how many parts both of a pair would be
        times_CS = (is_left_CS & (other_CS <= left_C[:, None])).astype(np.float32)
        times_CS += is_right_CS & (other_CS > right_C[:, None])
        growth_C = is_left_CS.mean(axis=1) + is_right_CS.mean(axis=1)
        columns, splits = _rank(times_CS, growth_C, parts)
        return _Borders(columns, left_C[columns].tolist(), right_C[columns].tolist(), splits)

    def _part(self, parts: _Parts, borders: _Borders) -> _Parts:
        items, names = parts.items, parts.names
        for place in range(borders.splits):
            values = self._columns_CN[borders.columns[place]][items]
            is_left, is_right = values <= borders.left[place], values > borders.right[place]
            items = np.concatenate([items[is_left], items[is_right]])
            names = np.concatenate([2 * names[is_left], 2 * names[is_right] + 1])
            self.cost.parted += len(items)
        return _Parts.named(items, names)

    def _bits(self, items: _Items, borders: _Borders) -> _Bits:
        bits = _Bits(np.zeros(len(items), np.uint32), np.zeros(len(items), np.uint32))
        one = np.uint32(1)
        for column, left, right in zip(borders.columns, borders.left, borders.right, strict=True):
            values = self._columns_CN[column][items]
            np.bitwise_or(bits.low << one, values <= right, out=bits.low)
            np.bitwise_or(bits.high << one, values > left, out=bits.high)
        return bits

    def _defer(self, parts: _Parts, borders: _Borders) -> None:
        """Keep small parts until there are enough to be compared in one go."""
        self._deferred.append((parts, self._bits(parts.items, borders)))
        if sum(len(one.items) for one, _ in self._deferred) >= _AT_ONCE:
            self._compare_deferred()

    def _compare_deferred(self) -> None:
        """Compare each item with those that come later in its part: the next, the one after it, and so on."""
        parts, bits = _longest_first(self._deferred)
        self._deferred.clear()
        if not len(parts.items):
            return
        # a last bit keeps neighbouring parts apart; from one that is long enough no others are reached
        is_odd = (parts.names % 2).astype(np.uint32) << np.uint32(_BITS)
        low, high = bits.low | is_odd, bits.high | (is_odd ^ np.uint32(1 << _BITS))
        one_way, other_way, may_be = np.empty_like(low), np.empty_like(low), np.empty(len(low), bool)
        found = list[tuple[Indices, int]]()
        ends, counts = parts.ends, _longer_than(parts.sizes)
        for ahead in range(1, int(parts.sizes[0])):
            last = int(ends[counts[ahead] - 1])
            first, second = slice(0, last - ahead), slice(ahead, last)
            np.bitwise_and(low[first], high[second], out=one_way[first])
            np.bitwise_and(high[first], low[second], out=other_way[first])
            np.bitwise_or(one_way[first], other_way[first], out=one_way[first])
            found.append((np.flatnonzero(np.equal(one_way[first], 0, out=may_be[first])), ahead))
            self.cost.compared += last - ahead
        firsts = np.concatenate([places for places, _ in found])
        seconds = np.concatenate([places + ahead for places, ahead in found])
        self._verify(parts.items[firsts], parts.items[seconds])

    def _compare_large(self, items: _Items, borders: _Borders) -> None:
        """Compare each item with each."""
        vectors = self._vectors_ND[items]
        if int((vectors.max(axis=0) - vectors.min(axis=0)).max()) <= self._near:
            self._visitor.meet_all(items.astype(np.intp))
            return
        bits = self._bits(items, borders)
        rows = max(_PAIRS_AT_ONCE // len(items), 1)
        for start in range(0, len(items), rows):
            own = slice(start, start + rows)
            apart = bits.low[own, None] & bits.high[None, start:]
            apart |= bits.high[own, None] & bits.low[None, start:]
            first, second = np.nonzero(apart == 0)
            later = first < second
            self.cost.compared += apart.size
            self._verify(items[start + first[later]], items[start + second[later]])

    def _verify(self, first: _Items, second: _Items) -> None:
        """Show the visitor those of the pairs that are near each other in all components."""
        self.cost.verified += len(first)
        for start in range(0, len(first), _AT_ONCE):
            one, other = first[start : start + _AT_ONCE], second[start : start + _AT_ONCE]
            may_be = self._may_be_near(one, other)
            one, other = one[may_be], other[may_be]
            apart = np.abs(self._vectors_ND[one].astype(np.int16) - self._vectors_ND[other])
            is_near = (apart <= self._near).all(axis=1)
            self._visitor.meet(one[is_near].astype(np.intp), other[is_near].astype(np.intp))

    def _may_be_near(self, one: _Items, other: _Items) -> NDArray[np.bool_]:
        """Return which pairs may be near by their first components: all that are, and few others."""
        if self._near > 127:
            return np.ones(len(one), bool)
        # bytes wrap around, so that one comparison tells of both directions, and takes the two ends for near
        apart = self._firsts_NF[one] - self._firsts_NF[other] + np.uint8(self._near)
        may_be: NDArray[np.bool_] = (apart <= np.uint8(2 * self._near)).all(axis=1)
        return may_be


def _rank(times_CS: NDArray[np.float32], growth_C: NDArray[np.float64], parts: _Parts) -> tuple[list[int], int]:
    """Return components, those first that tell most pairs apart, and by how many of them it is worth to part.

    Args:
        times_CS: in how many parts both of each sampled pair would be, for each component.
        growth_C: by how much each makes the vectors more.
        parts: that are sampled.
    """
    columns, splits, is_worth = list[int](), 0, True
    pairs, items = float(parts.pairs), float(len(parts.items))
    weight_S = np.ones(times_CS.shape[1], np.float32)
    left_out_C = np.zeros(len(times_CS), np.float32)
    for _ in range(min(_BITS, len(times_CS))):
        # of two that leave as many pairs the one that doubles fewer vectors
        left_C = (times_CS @ weight_S + np.float32(1e-6)) * np.sqrt(growth_C) + left_out_C
        column = int(left_C.argmin())
        columns.append(column)
        left_out_C[column] = np.inf
        after_S = weight_S * times_CS[column]
        saved = pairs * (1 - float(after_S.sum()) / max(float(weight_S.sum()), 1e-6))
        pairs, items = pairs - saved, items * float(growth_C[column])
        is_worth = is_worth and splits < _SPLITS and saved > _SPLIT_COST * items
        splits += is_worth
        weight_S = after_S if is_worth else np.minimum(after_S, weight_S)
    return columns, splits


def _longest_first(several: list[tuple[_Parts, _Bits]]) -> tuple[_Parts, _Bits]:
    """Return parts and their bits as one, in the order of their sizes, falling."""
    if not several:
        return _Parts(np.zeros(0, np.int32), np.zeros(0, np.intp)), _Bits(*np.zeros((2, 0), np.uint32))
    sizes = np.concatenate([parts.sizes for parts, _ in several])
    items = np.concatenate([parts.items for parts, _ in several])
    order = np.argsort(-sizes, kind="stable")
    starts, ordered = np.cumsum(sizes) - sizes, sizes[order]
    shifts = starts[order] - (np.cumsum(ordered) - ordered)
    places = np.repeat(shifts, ordered) + np.arange(len(items))
    return _Parts(items[places], ordered), _Bits.joined([bits for _, bits in several])[places]


def _longer_than(sizes: Indices) -> Indices:
    """Return how many of the sizes, which fall, are larger than 0, than 1, and so on, up to the largest."""
    return len(sizes) - np.searchsorted(sizes[::-1], np.arange(int(sizes[0])), side="right")
