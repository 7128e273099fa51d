"""Find pictures that look the same, by their thumbnails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["THUMB", "Comparison", "Thumb", "compare", "lookalikes", "near_duplicates"]

Thumb = NDArray[np.uint8]
"""A picture of THUMB x THUMB cells, (THUMB, THUMB, 3)."""
Indices = NDArray[np.intp]

THUMB = 8
"""Cells along a side of a thumbnail, by which pictures that look alike are recognised."""
_NEAR = 24
"""Levels of 255 by which no cell of two alike thumbnails differs. Of 1,000 emoji drawings, 99 % of the copies resized
or saved as JPEG of quality 75 or 90 stayed within it, and of the 499,500 pairs of different drawings none did."""
_LEAF = 128
"""Thumbnails that are compared with all that may be like them, instead of being parted further."""
_LOOKED_AT = 256
"""Thumbnails by which the cell is chosen that parts best."""
_PARTING = 0.9
"""Share of thumbnails near the median of the best cell, at most, for parting to be of use."""
_AT_ONCE = 2**19
"""Pairs compared at a time, which bounds memory."""
_STEPS = (6, 16, 64, THUMB * THUMB * 3)
"""Numbers of cells by which pairs are compared, few first: most differ in those already."""


@dataclass(frozen=True)
class Comparison:
    """Which of N thumbnails look the same.

    Attributes:
        group_N: of each, the first one of its group, as an index. Two that look the same are of one group, and so are
            all that such pairs link.
        pairs: see :func:`near_duplicates`.
    """

    group_N: Indices
    pairs: list[tuple[int, int]]


def lookalikes(thumbs: NDArray[np.uint8], thumb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Check which thumbnails (N, H, W, 3) differ from one (H, W, 3) in no cell by more than a few levels, (N,)."""
    apart = np.abs(thumbs.astype(np.int16) - thumb.astype(np.int16))
    alike: NDArray[np.bool_] = apart.max(axis=(1, 2, 3), initial=0) <= _NEAR
    return alike


def near_duplicates(thumbs: NDArray[np.uint8], held_N: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return pairs of thumbnails (N, H, W, 3) no cell of which differs by more than a few levels, as indices in order.

    Each is paired with the first that is like it among those of its own side, held out or not, and with the first of
    the other side: at most 2N pairs, where all would be N^2/2 of pictures that are all alike.
    """
    return compare(thumbs, held_N).pairs


def compare(thumbs: NDArray[np.uint8], held_N: NDArray[np.bool_]) -> Comparison:
    """Compare thumbnails (N, H, W, 3), some of which are held out, and return which look the same.

    Thumbnails are parted at the median of one cell, then of another, as in a k-d tree (Bentley 1975). With each part go
    those beyond its borders that may still be like one within. Exact; only where many thumbnails are nearly alike, and
    not quite, is each compared with each.
    """
    cells = thumbs[0].size if len(thumbs) else 0
    # in any order but their own, for neighbouring cells say the same
    flat_ND = thumbs.reshape(len(thumbs), cells)[:, np.random.default_rng(0).permutation(cells)]
    firsts = _Firsts(held_N)
    parts: list[tuple[Indices, Indices]] = [(np.arange(len(thumbs)),) * 2]
    while parts:
        part, candidates = parts.pop()
        halves = _halves(flat_ND, part, candidates) if len(part) > _LEAF else []
        if halves:
            parts += halves
        elif len(part) * len(candidates) > _AT_ONCE and _spread(flat_ND[candidates]) <= _NEAR:
            firsts.meet_all(part, candidates)
        else:
            for first, second in _alike_pairs(flat_ND, part, candidates):
                firsts.meet(first, second)
    return Comparison(firsts.groups(), firsts.pairs())


class _Firsts:
    """For each thumbnail the first that is like it, of its own side and of the other, and the first of its group."""

    def __init__(self, held_N: NDArray[np.bool_]) -> None:
        self._held_N, self._none = held_N, len(held_N)
        self._linked_N = np.arange(len(held_N))  # a forest: each points to itself, or to an earlier one of its group
        self._first_N2 = np.full((len(held_N), 2), self._none)

    def meet(self, first: Indices, second: Indices) -> None:
        """Take pairs that are alike, (P,) and (P,)."""
        across = (self._held_N[first] != self._held_N[second]).astype(int)
        np.minimum.at(self._first_N2, (first, across), second)
        np.minimum.at(self._first_N2, (second, across), first)
        self._link(first, second)

    def _link(self, first: Indices, second: Indices) -> None:
        """Let both of each pair be of one group."""
        roots = np.unique(np.stack([self._roots(first), self._roots(second)], axis=1), axis=0)
        for one, other in roots[roots[:, 0] != roots[:, 1]]:
            both = self._roots(np.array([one, other]))  # which those before may have linked
            self._linked_N[both] = both.min()

    def _roots(self, indices: Indices) -> Indices:
        roots = self._linked_N[indices]
        while (roots != self._linked_N[roots]).any():
            roots = self._linked_N[roots]
        self._linked_N[indices] = roots
        return roots

    def meet_all(self, part: Indices, candidates: Indices) -> None:
        """Take each of a part to be like all candidates."""
        for side in (False, True):
            leading = np.sort(candidates[self._held_N[candidates] == side])[:2]
            for other in leading:
                met = part[part != other]
                self.meet(met, np.full(len(met), other))

    def groups(self) -> Indices:
        """Return of each thumbnail the first one of its group."""
        return self._roots(np.arange(self._none))

    def pairs(self) -> list[tuple[int, int]]:
        """Return each thumbnail with its firsts, smaller index first, in order and once."""
        index, side = np.nonzero(self._first_N2 < self._none)
        other = self._first_N2[index, side]
        pairs = np.unique(np.stack([np.minimum(index, other), np.maximum(index, other)], axis=1), axis=0)
        return [(first, second) for first, second in pairs.tolist()]


def _halves(flat_ND: NDArray[np.uint8], part: Indices, candidates: Indices) -> list[tuple[Indices, Indices]]:
    """Part at the median of the cell that has fewest thumbnails near it; none, if no cell parts them."""
    seen_MD = flat_ND[part[:: max(len(part) // _LOOKED_AT, 1)]].astype(np.int16)
    median_D = np.median(seen_MD, axis=0).astype(np.int16)
    near_D = (np.abs(seen_MD - median_D) <= _NEAR).mean(axis=0)
    cell = int(near_D.argmin())
    if near_D[cell] > _PARTING:
        return []
    # the median itself may be the largest
    border = int(min(median_D[cell], seen_MD[:, cell].max() - 1))
    own, other = flat_ND[part, cell], flat_ND[candidates, cell]
    return [
        (part[own <= border], candidates[other <= border + _NEAR]),
        (part[own > border], candidates[other > border - _NEAR]),
    ]


def _spread(flat_ND: NDArray[np.uint8]) -> int:
    """Return by how much two thumbnails differ in a cell, at most."""
    return int((flat_ND.max(axis=0) - flat_ND.min(axis=0)).max())


def _alike_pairs(flat_ND: NDArray[np.uint8], part: Indices, candidates: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Yield pairs (P,) and (P,) of one of the part and a later candidate that are alike."""
    rows = max(_AT_ONCE // max(len(candidates), 1), 1)
    for start in range(0, len(part), rows):
        own = part[start : start + rows]
        may_be = _may_be_alike(flat_ND[own, : _STEPS[0]], flat_ND[candidates, : _STEPS[0]])
        first, second = np.divmod(np.flatnonzero(may_be), len(candidates))
        first, second = own[first], candidates[second]
        later = first < second
        first, second = first[later], second[later]
        for begin, end in pairwise((0, *_STEPS)):
            apart = flat_ND[first, begin:end].astype(np.int16) - flat_ND[second, begin:end]
            alike = (np.abs(apart) <= _NEAR).all(axis=1)
            first, second = first[alike], second[alike]
        yield first, second


def _may_be_alike(first_AD: NDArray[np.uint8], second_CD: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which pairs (A, C) may be alike: all that are, and those whose cells lie at the two ends of the range."""
    may = np.ones((len(first_AD), len(second_CD)), bool)
    for first_A, second_C in zip(first_AD.T, second_CD.T, strict=True):
        # bytes wrap around, so that one comparison tells of both directions
        may &= second_C[None] - (first_A - np.uint8(_NEAR))[:, None] <= 2 * _NEAR
    return may
